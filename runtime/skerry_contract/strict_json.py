"""JSON as the contract accepts it: no duplicate keys, no NaN, bounded depth and size.

The manifest and the monitoring spec are signed, yet they are read as if hostile (attacks B10, S10).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .errors import ManifestError


def canonical(value: Any) -> bytes:
    """The one encoding that this project writes: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def loads(data: bytes, *, max_bytes: int, max_depth: int, what: str) -> Any:
    """Parse strictly.

    Raises:
        ManifestError: too large, too deep, not UTF-8, not JSON, a duplicate key, NaN or infinity, a lone
            surrogate.
    """
    if len(data) > max_bytes:
        raise ManifestError(f"{what} has {len(data)} bytes; at most {max_bytes} are accepted")
    if _depth(data) > max_depth:
        raise ManifestError(f"{what} is nested deeper than {max_depth} levels")

    def refuse_constant(name: str) -> Any:
        raise ManifestError(f"{what} contains {name}, which is not JSON")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ManifestError(f"{what} has the key {twice[:80]!r} twice")
        return result

    def finite(text: str) -> float:
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise ManifestError(f"{what} contains a number beyond float64: {text[:40]}")
        return number

    def bounded_int(text: str) -> int:
        if len(text) > 20:
            raise ManifestError(f"{what} contains an integer of {len(text)} digits")
        return int(text)

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_constant=refuse_constant,
            parse_float=finite,
            parse_int=bounded_int,
        )
        if b"\\u" in data:
            canonical(value)  # raises if an escape names half a character, which no UTF-8 can write again
    except (UnicodeError, json.JSONDecodeError) as error:
        raise ManifestError(f"{what} is not JSON: {error}") from error
    return value


def _depth(data: bytes) -> int:
    """Deepest nesting of brackets outside strings, without recursion."""
    deepest = level = 0
    in_string = escaped = False
    for byte in data:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            level += 1
            deepest = max(deepest, level)
        elif byte in b"]}":
            level -= 1
    return deepest


class Reader:
    """Takes known fields out of a JSON object with type checks; what is left over is kept.

    The rest survives a round trip (habit of python-tuf, ADR 0008 there), so that an older reader never
    drops what a newer writer said.
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise ManifestError(f"{where} must be an object, not {_kind(value)}")
        self._left: dict[str, Any] = dict(value)
        self.where = where

    def take(self, key: str, kind: type | tuple[type, ...], *default: Any) -> Any:
        """The field, checked; a default makes it optional."""
        if key not in self._left:
            if default:
                return default[0]
            raise ManifestError(f"{self.where}.{key} is missing")
        value = self._left.pop(key)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if isinstance(value, bool) and bool not in kinds:
            raise ManifestError(f"{self.where}.{key} must be {_names(kinds)}, not a boolean")
        if isinstance(value, int) and float in kinds and not isinstance(value, bool):
            return value if int in kinds else float(value)
        if not isinstance(value, kinds):
            raise ManifestError(f"{self.where}.{key} must be {_names(kinds)}, not {_kind(value)}")
        return value

    def rest(self) -> Mapping[str, Any]:
        """The fields that nobody took."""
        return self._left


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _names(kinds: tuple[type, ...]) -> str:
    return " or ".join(kind.__name__ for kind in kinds)
