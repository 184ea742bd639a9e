"""The bundle file: a canonical ustar archive, read as strictly as it is written (``docs/spec/bundle-v1.md``).

Members in this order: ``manifest.json``, ``manifest.sig``, then ``blobs/<sha256>`` ordered by digest, each
blob's bytes beginning at a multiple of 4 KiB. The framing has no freedom: it follows from the members'
sizes alone. The reader therefore rebuilds every header and compares all 512 bytes, so that links, other
names, duplicates, overlaps, hidden or trailing bytes cannot be expressed (attacks B1-B10), and no archive
library touches untrusted input. Any ``tar`` unpacks it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from .digests import Digest, hex_of
from .errors import BundleFormatError
from .limits import DEFAULT_LIMITS, Limits
from .manifest import BlobRef, Manifest

SUFFIX: Final = ".skerry"
MANIFEST_NAME: Final = "manifest.json"
SIGNATURE_NAME: Final = "manifest.sig"
BLOB_FOLDER: Final = "blobs"
ALIGNMENT: Final = 4096

_RECORD: Final = 512
_END: Final = bytes(2 * _RECORD)
_CHUNK: Final = 1 << 16
_MORE: Final = "Fetch or build the bundle again; it is not usable."


def write_bundle(
    manifest: Manifest, manifest_bytes: bytes, signature: bytes, blob: Callable[[Digest], bytes]
) -> Iterator[bytes]:
    """The bytes of a bundle, piece by piece.

    Args:
        manifest: what ``manifest_bytes`` says.
        manifest_bytes: the exact bytes that were signed.
        signature: see `skerry_contract.signing.sign_bundle`.
        blob: the content of a digest.

    Raises:
        BundleFormatError: a blob does not have the size or the digest that the manifest lists.
    """
    position = 0
    for name, data in ((MANIFEST_NAME, manifest_bytes), (SIGNATURE_NAME, signature)):
        piece = _header(name, len(data)) + data + _padding(len(data))
        position += len(piece)
        yield piece
    for ref in manifest.blobs():
        data = blob(ref.digest)
        if len(data) != ref.size or hashlib.sha256(data).hexdigest() != hex_of(ref.digest):
            raise BundleFormatError(f"blob {ref.digest} is not what the manifest lists")
        head = _blob_head(ref, position)
        tail = _padding(ref.size)
        position += len(head) + ref.size + len(tail)
        yield head
        yield data
        yield tail
    yield _END


class BundleReader:
    """Reads a bundle front to back from any stream, also one that cannot seek.

    The first two members are read on construction. Verify them (`skerry_contract.signing.verify_bundle`)
    before asking for blobs: what the manifest says decides what the rest of the file must be.
    """

    def __init__(self, stream: BinaryIO, limits: Limits = DEFAULT_LIMITS) -> None:
        self._stream = stream
        self._position = 0
        self._limits = limits
        self.manifest_bytes = self._small(MANIFEST_NAME, limits.manifest_bytes)
        self.signature = self._small(SIGNATURE_NAME, limits.signature_bytes)

    def blobs(self, manifest: Manifest) -> Iterator[tuple[BlobRef, Iterator[bytes]]]:
        """Every blob in order, its bytes in pieces of at most 64 KiB.

        What the caller does not read is read and hashed all the same. The bytes of a blob may be used only
        after its iterator ended: the digest is known then.

        Raises:
            BundleFormatError: truncated, foreign framing, a digest that does not match, trailing bytes.
        """
        total = sum(ref.size for ref in manifest.blobs())
        if total > self._limits.bundle_bytes:
            raise BundleFormatError(
                f"the blobs have {total} bytes; at most {self._limits.bundle_bytes} are accepted"
            )
        for ref in manifest.blobs():
            expected = _blob_head(ref, self._position)
            if self._take(len(expected), f"the header of blob {ref.digest}") != expected:
                raise BundleFormatError(f"the header of blob {ref.digest} is not canonical", hint=_MORE)
            pieces = self._blob(ref)
            yield ref, pieces
            for _ in pieces:
                pass
            self._expect_zeros(len(_padding(ref.size)))
        if self._take(len(_END), "the end mark") != _END or self._stream.read(1):
            raise BundleFormatError("there are bytes after the end of the bundle", hint=_MORE)

    def _blob(self, ref: BlobRef) -> Iterator[bytes]:
        hasher = hashlib.sha256()
        left = ref.size
        while left:
            piece = self._take(min(left, _CHUNK), f"blob {ref.digest}")
            hasher.update(piece)
            left -= len(piece)
            if not left and hasher.hexdigest() != hex_of(ref.digest):
                raise BundleFormatError(f"blob {ref.digest} was altered", hint=_MORE)
            yield piece
        if not ref.size and hasher.hexdigest() != hex_of(ref.digest):
            raise BundleFormatError(f"blob {ref.digest} was altered", hint=_MORE)

    def _small(self, name: str, most: int) -> bytes:
        header = self._take(_RECORD, f"the header of {name}")
        size = _size_of(header)
        if header != _header(name, size):
            raise BundleFormatError(
                f"this is not a Skerry bundle: {name} is not where it must be",
                hint="A bundle is the .skerry file that 'skerry pack' writes.",
            )
        if size > most:
            raise BundleFormatError(f"{name} has {size} bytes; at most {most} are accepted")
        data = self._take(size, name)
        self._expect_zeros(len(_padding(size)))
        return data

    def _expect_zeros(self, count: int) -> None:
        if any(self._take(count, "padding")):
            raise BundleFormatError("there are bytes between the members of the bundle", hint=_MORE)

    def _take(self, count: int, what: str) -> bytes:
        pieces = []
        left = count
        while left:
            piece = self._stream.read(left)
            if not piece:
                raise BundleFormatError(
                    f"truncated: the bundle ends at byte {self._position + count - left}, within {what}",
                    hint="Copy or download it again.",
                )
            pieces.append(piece)
            left -= len(piece)
        self._position += count
        return b"".join(pieces)


def _header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """The one ustar header (POSIX.1-1988) of a member: mode 0644, no times, no owners."""
    fields = [
        name.encode().ljust(100, b"\0"),
        b"0000644\0", b"0000000\0", b"0000000\0",
        f"{size:011o}\0".encode(), b"00000000000\0",
        b" " * 8, kind, bytes(100), b"ustar\x0000", bytes(64), b"0000000\0", b"0000000\0", bytes(167),
    ]  # fmt: skip
    block = b"".join(fields)
    return block[:148] + f"{sum(block):06o}\0 ".encode() + block[156:]


def _blob_head(ref: BlobRef, position: int) -> bytes:
    """Header of a blob, behind a pax comment of such a length that the blob's bytes are aligned."""
    name = f"{BLOB_FOLDER}/{hex_of(ref.digest)}"
    gap = -(position + _RECORD) % ALIGNMENT
    if gap == 0:
        return _header(name, ref.size)
    if gap == _RECORD:
        gap += ALIGNMENT
    comment = gap - _RECORD
    record = f"{comment} comment=".encode().ljust(comment - 1, b"-") + b"\n"
    return _header("pax", comment, b"x") + record + _header(name, ref.size)


def _size_of(header: bytes) -> int:
    field = header[124:135]
    return int(field, 8) if field.isdigit() and not set(field) & set(b"89") else 0


def _padding(size: int) -> bytes:
    return bytes(-size % _RECORD)
