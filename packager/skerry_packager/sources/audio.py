"""A folder of WAV files as windows of sound: PCM of 8 to 32 bits, mixed to one channel, cut into windows.

For a stateless model every window is a row. With `SourceOptions.sequences` every file is one row, a sequence
of windows in order, with one label. Else a file's label is the label of each of its windows.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from skerry_contract.errors import DataError

from ..inspect import TensorInfo
from .folders import LabelledFiles, check_regular, labelled_files
from .options import SourceOptions
from .resample import resample
from .samples import (
    LABELS,
    LENGTHS,
    Samples,
    check_bytes,
    require,
    spread_evenly,
    spread_note,
)

SOUNDS: Final = (".wav", ".wave")
_RATES: Final = ("sr", "rate", "sample_rate", "sampling_rate")
_TYPES: Final = ("float16", "float32", "float64", "int16")
_CONVERT: Final = "Convert it: ffmpeg -i IN -c:a pcm_s16le OUT.wav"
_HIGHEST_RATE: Final = 768_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundInput:
    """Where windows of sound go, and how long they are."""

    name: str
    shape: tuple[int, ...]
    """Of one window, without the batch axis: ``[window]`` and axes of 1."""
    window: int
    dtype: np.dtype[Any]
    rate_input: str
    """Input that is told the sampling rate; empty if there is none."""


def sound_input(inputs: Sequence[TensorInfo], options: SourceOptions) -> SoundInput:
    """The input that takes sound.

    Raises:
        InputError: none does or several do, or the length of the window is open and not given.
    """
    fitting = [
        (info, axes)
        for info in inputs
        if (axes := _axes(info)) is not None and options.input in ("", info.name)
    ]
    shapes = ", ".join(f"{info.name!r} {list(info.shape)}" for info in inputs)
    require(bool(fitting), f"no input takes windows of sound: {shapes}", "Sound needs [N, samples].")
    require(len(fitting) == 1, f"several inputs could take sound: {shapes}", "Name one with --input.")
    info, axes = fitting[0]
    place = next((place for place, size in enumerate(axes) if size != 1), len(axes) - 1)
    declared = axes[place] if isinstance(axes[place], int) else 0
    require(
        bool(declared or options.window),
        f"input {info.name!r} leaves the number of samples open",
        "Give the window that it was trained with: --window SAMPLES.",
    )
    require(
        not (declared and options.window) or declared == options.window,
        f"input {info.name!r} takes windows of {declared} samples, not {options.window}",
        "Leave --window out.",
    )
    window = int(declared or options.window)
    rate = next((other.name for other in inputs if _takes_rate(other) and other is not info), "")
    return SoundInput(
        name=info.name,
        shape=tuple(window if at == place else 1 for at in range(len(axes))),
        window=window,
        dtype=np.dtype(info.dtype),
        rate_input=rate,
    )


def _axes(info: TensorInfo) -> tuple[int | str | None, ...] | None:
    """Axes of one window; None if the input takes no sound: at most one of them may be longer than 1."""
    if not info.ranked or info.dtype not in _TYPES or not 1 <= len(info.shape) <= 3:
        return None
    first, rest = info.shape[0], info.shape[1:]
    axes = rest if rest and (first == 1 or not isinstance(first, int)) else info.shape
    return axes if sum(size != 1 for size in axes) <= 1 else None


def _takes_rate(info: TensorInfo) -> bool:
    return (
        info.name.lower() in _RATES
        and np.dtype(info.dtype).kind in "iuf"
        and all(not isinstance(size, int) or size == 1 for size in info.shape)
    )


def read_sounds(folder: Path, inputs: Sequence[TensorInfo], options: SourceOptions) -> Samples:
    """All WAV files of a folder, in the order of their names.

    Raises:
        InputError: an option does not fit the model.
        DataError: a file is broken or of another sampling rate; the message names it.
    """
    wanted = sound_input(inputs, options)
    hop = options.hop or wanted.window
    for name, value in (("hop", hop), ("window", wanted.window)):
        require(0 < value <= 2**24, f"--{name} {value} is out of range", "Give a number of samples.")
    require(
        0 <= options.sample_rate <= _HIGHEST_RATE,
        f"--sample-rate {options.sample_rate} is out of range",
        "Give it in hertz, such as 16000.",
    )
    files = labelled_files(folder, SOUNDS, options)
    rate = options.sample_rate or read_wave(files.paths[0])[1]
    framed: list[np.ndarray] = []
    padded = held = 0
    for path in files.paths:
        check_regular(path)
        check_bytes(path.stat().st_size, options, str(path))
        signal, given = read_wave(path)
        if given != rate and not options.sample_rate:
            raise DataError(
                f"{path} has {given} Hz, and {files.paths[0].name} has {rate} Hz",
                hint="Give the rate that the model was trained with: --sample-rate HZ resamples the others.",
            )
        samples = len(signal) * rate // given
        count = 1 + max(0, samples - wanted.window) // hop
        held += count * wanted.window * wanted.dtype.itemsize
        check_bytes(max(held, samples * 8), options, f"{folder} up to {path.name}")
        frames = _frames(_numbers(resample(signal, given, rate), wanted.dtype), wanted.window, hop)
        framed.append(frames.reshape(len(frames), *wanted.shape))
        padded += samples < wanted.window
    notes = files.notes
    if padded:
        notes += (f"{folder}: {padded} files are shorter than a window, and were filled up with silence",)
    gather = _as_sequences if options.sequences else _as_rows
    arrays, more = gather(folder, wanted, framed, files, options)
    if wanted.rate_input:
        info = next(info for info in inputs if info.name == wanted.rate_input)
        shape = (len(arrays[wanted.name]), *(1 for _ in info.shape))
        arrays[info.name] = np.full(shape, rate, dtype=info.dtype)
    record = {
        "kind": "sound",
        "input": wanted.name,
        "sample_rate": rate,
        "channels": "mean",
        "window": wanted.window,
        "hop": hop,
        "scale": "-32768..32767" if wanted.dtype == np.int16 else "-1..1",
        "dtype": str(wanted.dtype),
    }
    return Samples(arrays=arrays, preprocessing=record, notes=(*notes, *more), class_names=files.class_names)


def read_wave(path: Path) -> tuple[np.ndarray, int]:
    """A WAV file as float64 [samples] from -1 to 1, all channels mixed, and its sampling rate in Hz.

    Raises:
        DataError: no WAV file of plain PCM, empty, or truncated.
    """
    check_regular(path)
    try:
        with path.open("rb") as file, wave.open(file) as sound:
            channels, width, rate = sound.getnchannels(), sound.getsampwidth(), sound.getframerate()
            count = sound.getnframes()
            data = sound.readframes(count)
    except (wave.Error, EOFError, OSError) as error:
        reason = str(error) or "the file ends within its header"
        raise DataError(f"{path} is no WAV file of plain PCM: {reason}", hint=_CONVERT) from error
    if not 0 < rate <= _HIGHEST_RATE or not channels or width not in (1, 2, 3, 4):
        raise DataError(f"{path}: {channels} channels of {8 * width} bits at {rate} Hz", hint=_CONVERT)
    if not count or len(data) < count * channels * width:
        raise DataError(
            f"{path} is {'truncated' if count else 'empty'}", hint="Remove it, or record it anew."
        )
    return _pcm(data, width).reshape(-1, channels).mean(axis=1), rate


def _pcm(data: bytes, width: int) -> np.ndarray:
    if width == 1:
        return np.asarray((np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128)
    if width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return np.asarray(wide.view("<i4")[:, 0] / 2.0**31)
    return np.asarray(np.frombuffer(data, f"<i{width}") / 2.0 ** (8 * width - 1))


def _numbers(signal: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if dtype == np.int16:
        return np.asarray(np.clip(np.rint(signal * 32768), -32768, 32767).astype(dtype))
    return signal.astype(dtype)


def _frames(signal: np.ndarray, window: int, hop: int) -> np.ndarray:
    """Windows [count, window]; what is left at the end is dropped, a shorter signal filled up."""
    if len(signal) < window:
        signal = np.pad(signal, (0, window - len(signal)))
    return np.lib.stride_tricks.sliding_window_view(signal, window)[::hop].copy()


Gathered = tuple[dict[str, np.ndarray], tuple[str, ...]]


def _as_rows(
    folder: Path,
    wanted: SoundInput,
    framed: Sequence[np.ndarray],
    files: LabelledFiles,
    options: SourceOptions,
) -> Gathered:
    rows = np.concatenate(framed)
    keep = spread_evenly(range(len(rows)), options.max_rows)
    arrays = {wanted.name: rows[keep]}
    if files.labels is not None:
        arrays[LABELS] = np.repeat(files.labels, [len(frames) for frames in framed])[keep]
    notes = [spread_note(str(folder), len(keep), len(rows))] if len(keep) < len(rows) else []
    if len(rows) > len(framed):
        notes.append(
            f"{folder}: windows of one file are alike, so {len(keep)} rows say less than as many files would"
        )
    return arrays, tuple(notes)


def _as_sequences(
    folder: Path,
    wanted: SoundInput,
    framed: Sequence[np.ndarray],
    files: LabelledFiles,
    options: SourceOptions,
) -> Gathered:
    """[files, steps, *window], filled up with silence behind `LENGTHS` real steps; one label a file."""
    lengths = np.array([len(frames) for frames in framed])
    steps = int(lengths.max())
    check_bytes(len(framed) * steps * framed[0][0].nbytes, options, f"{folder} (sequences of {steps} steps)")
    filled = np.zeros((len(framed), steps, *wanted.shape), dtype=wanted.dtype)
    for row, frames in enumerate(framed):
        filled[row, : len(frames)] = frames
    arrays = {wanted.name: filled, LENGTHS: lengths}
    if files.labels is not None:
        arrays[LABELS] = files.labels
    return arrays, ()
