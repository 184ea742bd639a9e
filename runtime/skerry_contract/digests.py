"""Digests: the identity of every blob and of every bundle."""

from __future__ import annotations

import hashlib
import re
from typing import NewType

from .errors import InputError

Digest = NewType("Digest", str)
"""``sha256:`` and 64 lower-case hexadecimal digits."""

_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")


def parse_digest(text: str) -> Digest:
    """Check the form of a digest.

    Raises:
        InputError: the text is not ``sha256:`` + 64 lower-case hexadecimal digits.

    >>> parse_digest("sha256:" + "0" * 64)[:10]
    'sha256:000'
    """
    if not _PATTERN.fullmatch(text):
        raise InputError(
            f"{text[:80]!r} is not a digest", hint="A digest is 'sha256:' and 64 lower-case hex digits."
        )
    return Digest(text)


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """SHA-256 of the bytes.

    >>> digest_of(b"")[-8:]
    '7852b855'
    """
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def hex_of(digest: Digest) -> str:
    """The 64 hexadecimal digits: the name of the blob in a bundle and in every store."""
    return digest.removeprefix("sha256:")


def short(digest: Digest, digits: int = 12) -> str:
    """The first digits, for people."""
    return hex_of(digest)[:digits]


def prefix8(digest: Digest) -> bytes:
    """The first 8 bytes, as window summaries carry them."""
    return bytes.fromhex(hex_of(digest)[:16])
