"""Another sampling rate for sound, by a windowed sinc in polyphase form (Oppenheim and Schafer, Discrete-Time
Signal Processing, ch. 4.6): what lies above half of the lower rate is taken out, and a tone stays that tone.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np

from skerry_contract.errors import InputError

_ZEROS: Final = 16
"""Zero crossings of the sinc on either side."""
_KAISER: Final = 8.0
_PASS: Final = 0.95
"""Share of the lower band that passes; the rest is the slope of the filter."""
_MOST_RATIO: Final = 64
_MOST_PHASES: Final = 50_000
_BLOCK: Final = 4_000_000


def resample(signal: np.ndarray, given: int, wanted: int) -> np.ndarray:
    """A signal [samples] at `given` Hz as float64 at `wanted` Hz, as long in time to one sample.

    Raises:
        InputError: the rates are too far apart, or their ratio is not simple enough.
    """
    common = math.gcd(given, wanted)
    up, down = wanted // common, given // common
    if up == down:
        return signal.astype(np.float64)
    if max(up, down) > _MOST_RATIO * min(up, down) or up > _MOST_PHASES:
        raise InputError(f"sound of {given} Hz is not resampled to {wanted} Hz", hint="Convert it before.")
    kernels = _kernels(up, down)
    reach = kernels.shape[1] // 2
    padded = np.pad(signal.astype(np.float64), reach)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernels.shape[1])
    result = np.empty(-(-len(signal) * up // down))
    block = max(1, _BLOCK // kernels.shape[1])
    for start in range(0, len(result), block):
        times = np.arange(start, min(start + block, len(result)), dtype=np.int64) * down
        result[start : start + len(times)] = np.einsum("ij,ij->i", windows[times // up], kernels[times % up])
    return result


@lru_cache(maxsize=8)
def _kernels(up: int, down: int) -> np.ndarray:
    """One filter for each phase [up, taps]: what the samples around a time contribute to it."""
    cutoff = _PASS * min(1.0, up / down)
    reach = math.ceil(_ZEROS / cutoff)
    distance = np.arange(-reach, reach + 1)[None, :] - (np.arange(up) / up)[:, None]
    taper = np.i0(_KAISER * np.sqrt(np.clip(1 - np.square(distance / (reach + 1)), 0, None)))
    kernels = np.sinc(cutoff * distance) * taper
    return np.asarray(kernels / kernels.sum(axis=1, keepdims=True))
