"""What the tests of the bundle file share: a small bundle, a whole reading of one, and raw ustar headers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pytest
from tests.builders import BundleBuilder, monitoring_spec

from skerry_contract.bundle import BundleReader
from skerry_contract.digests import Digest
from skerry_contract.envelope import Verifier
from skerry_contract.errors import BundleFormatError
from skerry_contract.manifest import Manifest
from skerry_contract.signing import verify_bundle


def tiny(builder: BundleBuilder) -> bytes:
    """A bundle of one variant, small enough to be cut at every byte."""
    builder.models = {"fp32": b"model"}
    builder.spec = monitoring_spec(()).to_bytes()
    return builder.build()


def accept(source: bytes | BinaryIO, verifiers: Sequence[Verifier]) -> tuple[Manifest, dict[Digest, bytes]]:
    """What every reader does: framing, signature, manifest, then each blob to its end."""
    reader = BundleReader(io.BytesIO(source) if isinstance(source, bytes) else source)
    manifest = verify_bundle(reader.manifest_bytes, reader.signature, verifiers)
    return manifest, {ref.digest: b"".join(pieces) for ref, pieces in reader.blobs(manifest)}


def refuse(data: bytes, verifiers: Sequence[Verifier], match: str | None = None) -> None:
    """The framing of the file is refused, whatever its signature says."""
    with pytest.raises(BundleFormatError, match=match):
        accept(data, verifiers)


def header(
    name: str, size: int, kind: bytes = b"0", link: str = "", raw_size: bytes = b"", prefix: str = ""
) -> bytes:
    """A ustar header with a right checksum and anything else in it."""
    block = bytearray(512)
    block[:100] = name.encode().ljust(100, b"\0")[:100]
    block[100:124] = b"0000644\x000000000\x000000000\0"
    block[124:136] = raw_size or f"{size:011o}\0".encode()
    block[136:148] = b"00000000000\0"
    block[148:157] = b" " * 8 + kind
    block[157:257] = link.encode().ljust(100, b"\0")
    block[257:265] = b"ustar\x0000"
    block[329:345] = b"0000000\x000000000\0"
    block[345:500] = prefix.encode().ljust(155, b"\0")
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def member(name: str, data: bytes = b"", kind: bytes = b"0", link: str = "") -> bytes:
    """A header, the data, the padding."""
    return header(name, len(data), kind, link) + data + bytes(-len(data) % 512)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a bundle are."""

    data: bytes
    starts: tuple[int, ...]
    """Of the headers of the regular members, in order."""

    @classmethod
    def of(cls, data: bytes) -> Layout:
        starts = []
        at = 0
        while data[at : at + 512] != bytes(512):
            size = int(data[at + 124 : at + 135], 8)
            if data[at + 156 : at + 157] == b"0":
                starts.append(at)
            at += 512 + size + -size % 512
        return cls(data, tuple(starts))

    def replace_header(self, index: int, block: bytes) -> bytes:
        at = self.starts[index]
        return self.data[:at] + block + self.data[at + 512 :]

    def insert(self, index: int, extra: bytes) -> bytes:
        at = self.starts[index]
        return self.data[:at] + extra + self.data[at:]


class Trickle(io.RawIOBase):
    """A stream that gives at most one byte a call and cannot seek."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 1))


class Endless(io.RawIOBase):
    """A beginning, then the same block again and again; counts what was read."""

    def __init__(self, beginning: bytes, block: bytes) -> None:
        self._left = beginning
        self._block = block
        self.taken = 0

    def read(self, size: int = -1) -> bytes:
        while len(self._left) < size:
            self._left += self._block
        piece, self._left = self._left[:size], self._left[size:]
        self.taken += size
        return piece
