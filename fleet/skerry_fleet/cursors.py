"""Opaque keyset cursors: where the next page of a list begins."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from skerry_contract.errors import InputError

T = TypeVar("T")
K = TypeVar("K", int, str)

MAX_PAGE = 500

_UNCHANGED = "Pass 'next' of the previous page unchanged, or none."


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list; ``next`` is None on the last one."""

    items: list[T]
    next: str | None


def encode(key: int | str) -> str:
    """
    >>> decode(encode("pi-7"), str)
    'pi-7'
    """
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def decode(cursor: str, kind: type[K]) -> K:
    """Raises `InputError`: not a cursor of this list."""
    try:
        key = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=kind)
    except (ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise InputError("the cursor is not one of this list", hint=_UNCHANGED) from error
    return key


def page(rows: list[T], limit: int, key: Callable[[T], int | str]) -> Page[T]:
    """Of ``limit + 1`` rows that were asked for; the last one only says that there are more."""
    more = len(rows) > limit
    items = rows[:limit]
    return Page(items, encode(key(items[-1])) if more else None)


def check_limit(limit: int) -> int:
    """Raises `InputError`: outside 1 to `MAX_PAGE`."""
    if not 1 <= limit <= MAX_PAGE:
        raise InputError(f"limit is {limit}; a page has 1 to {MAX_PAGE} items")
    return limit
