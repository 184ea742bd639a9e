"""Which outputs of a model are its inputs at the next step: the memory of voice detectors and wake words.

A loop is guessed from the names alone and only refused by types and shapes: an autoencoder's output has the
shape of its input too, and is no state. What cannot be guessed is told: ``--state stateN=state``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from skerry_contract.errors import DataError, InputError

from .inspect import TensorInfo

OFF: Final = "none"
"""The one word that switches guessing off."""

_EARLIER: Final = frozenset({"in", "input", "prev", "previous", "old", "past", "init", "initial", "last"})
_LATER: Final = frozenset({"out", "output", "n", "new", "next", "present", "updated", "current", "r"})
_STATE_WORDS: Final = frozenset(
    {"state", "states", "hidden", "cell", "cache", "cached", "caches", "memory", "mem", "mems"}
    | {"rnn", "lstm", "gru", "hx", "cx"}
)
_LETTERS: Final = frozenset({"h", "c"})
"""Words of their own in an LSTM, and only there."""
_GROWING: Final = re.compile(r"past|seq|cache|len|time")
"""In the name of a free dimension: it counts what was seen so far, which is nothing at the beginning."""
_TOKEN: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")

Key = tuple[str, ...]


def find_states(
    inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], told: Sequence[str] = ()
) -> Mapping[str, str]:
    """State output -> the input that takes it at the next step; empty for a model without memory.

    Args:
        told: ``output=input`` for each loop, or `OFF` alone; empty guesses from the names.

    Raises:
        InputError: a loop that was told does not exist or does not fit.
    """
    if told:
        return _told(inputs, outputs, told)
    pairs = [
        (output.name, given.name)
        for output in outputs
        for given in inputs
        if _named_alike(given.name, output.name) and not _misfit(given, output)
    ]
    # Where two could be meant, none is.
    loops = {
        output: given
        for output, given in pairs
        if sum(one == output for one, _ in pairs) == 1 and sum(other == given for _, other in pairs) == 1
    }
    words = {name: set(_tokens(name)) for name in loops.values()}
    has_h = any("h" in found for found in words.values())
    loops = {
        output: given
        for output, given in loops.items()
        if has_h or "c" not in words[given] or words[given] & _STATE_WORDS
    }
    return loops if len(loops) < len(inputs) else {}


def begin_states(inputs: Sequence[TensorInfo], loops: Mapping[str, str]) -> Mapping[str, np.ndarray]:
    """Zeros for every state input, as at the beginning of a sequence: a batch of one, a cache of nothing.

    Raises:
        DataError: a state's number of dimensions is not declared, so that nobody knows its zeros.
    """
    begun: dict[str, np.ndarray] = {}
    for info in inputs:
        if info.name not in loops.values():
            continue
        if not info.ranked:
            raise DataError(
                f"state {info.name!r} has no declared shape, so its beginning is not known",
                hint="Give the initial state as an array of that name, one for each sequence.",
            )
        shape = [
            size if isinstance(size, int) else 0 if _GROWING.search((size or "").lower()) else 1
            for size in info.shape
        ]
        begun[info.name] = np.zeros(shape, dtype=info.dtype)
    return begun


def _told(
    inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], told: Sequence[str]
) -> Mapping[str, str]:
    if tuple(told) == (OFF,):
        return {}
    by_output, by_input = {info.name: info for info in outputs}, {info.name: info for info in inputs}
    loops: dict[str, str] = {}
    for text in told:
        output, _, given = text.partition("=")
        if output not in by_output or given not in by_input:
            raise InputError(
                f"{text[:80]!r} names no loop from an output to an input",
                hint=f"Write OUTPUT=INPUT (or {OFF!r} alone). Outputs: {_list(by_output)}; "
                f"inputs: {_list(by_input)}.",
            )
        if output in loops or given in loops.values():
            raise InputError(
                f"{text[:80]!r}: one of the two is in another loop already", hint="Name each of them once."
            )
        if misfit := _misfit(by_input[given], by_output[output]):
            raise InputError(
                f"output {output!r} cannot be input {given!r} at the next step: {misfit}",
                hint="Check which output carries this state.",
            )
        loops[output] = given
    if len(loops) == len(inputs):
        raise InputError(
            "every input would be a state: nothing is left to feed", hint="Leave the data input out."
        )
    return loops


def _list(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:12])


def _misfit(given: TensorInfo, output: TensorInfo) -> str:
    """Why an output cannot be fed back into an input; empty if it can."""
    if given.dtype != output.dtype:
        return f"{output.dtype} into {given.dtype}"
    if not given.ranked or not output.ranked:
        return ""
    fits = len(given.shape) == len(output.shape) and all(
        one == other or not (isinstance(one, int) and isinstance(other, int))
        for one, other in zip(given.shape, output.shape, strict=True)
    )
    return "" if fits else f"shape {list(output.shape)} into {list(given.shape)}"


def _named_alike(given: str, output: str) -> bool:
    """Whether the two names say: the same memory, earlier and later.

    >>> [_named_alike(*pair.split()) for pair in ("state stateN", "h0 hn", "prev_state_c new_state_c")]
    [True, True, True]
    >>> [_named_alike(*pair.split()) for pair in ("input output", "x_in x_out", "hidden_states hidden_out")]
    [False, False, False]
    """
    earlier, later = _tokens(given), _tokens(output)
    shared = _keys(earlier, _EARLIER) & _keys(later, _LATER)
    if not shared or earlier == later:
        return False
    if "past" in earlier and "present" in later:
        return True
    key = max(shared, key=len)
    if "hidden" in key and "states" in key and not {"rnn", "lstm", "gru"} & set(key):
        return False  # what transformers call their activations
    return bool(_STATE_WORDS & set(key)) or (key[0] in _LETTERS and all(part.isdigit() for part in key[1:]))


def _keys(tokens: Key, affixes: frozenset[str]) -> set[Key]:
    """The name itself, without the words of time, and without the zero of ``h0``."""
    bare = tuple(token for token in tokens if token not in affixes)
    keys = {tokens, bare}
    if tokens[:3] == ("past", "key", "values"):  # present.0.key follows past_key_values.0.key
        keys.add(tokens[3:])
    if len(bare) == 2 and bare[1] == "0" and affixes is _EARLIER:
        keys.add(bare[:1])
    return {key for key in keys if key}


def _tokens(name: str) -> Key:
    """Lower-case words and numbers of a name.

    >>> _tokens("serving_default_stateN:0"), _tokens("hn"), _tokens("past_key_values.0.key")
    (('state', 'n'), ('h', 'n'), ('past', 'key', 'values', '0', 'key'))
    """
    bare = re.sub(r":\d+$", "", name).removeprefix("serving_default_")
    words = [token.lower() for token in _TOKEN.findall(bare)]
    return tuple(part for word in words for part in (tuple(word) if word in ("hn", "cn") else (word,)))
