"""Binary frames around what is too hot or too large for JSON: outbox rows and blocks of a blob.

Outbox frame (``tel`` and ``evt``), big-endian::

    "SKO1" | stream 8 | acked u64 | prev u64 | first u64 | last u64 | codec u8 | crc32 u32 | body

The checksum covers everything before it and the body.

Every row names its predecessor, so the server sees a hole: it accepts a row if it has committed ``prev``,
or if the device says (``acked``) that everything up to ``prev`` was acknowledged or accounted as a gap.

Block frame (``dn/blk``)::

    "SKB1" | transfer u64 | offset u64 | kind u8 (0 data, 1 error report as JSON) | bytes
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from .errors import MessageError

_OUTBOX: Final = struct.Struct(">4s8sQQQQB")
_CRC: Final = struct.Struct(">I")
_BLOCK: Final = struct.Struct(">4sQQB")
_MAX_BODY: Final = 4 << 20


class Codec(IntEnum):
    """How the body is coded."""

    RAW = 0
    ZLIB = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxFrame:
    """One row of a device's outbox in flight."""

    stream: bytes
    """8 random bytes; a new outbox file begins a new stream."""
    acked: int
    """The device needs nothing up to here: acknowledged, or given up and accounted."""
    prev: int
    """The last sequence number before ``first`` that the outbox held; 0 if none."""
    first: int
    last: int
    body: bytes
    """Decoded."""
    codec: Codec = Codec.RAW

    def encode(self) -> bytes:
        packed = zlib.compress(self.body, 6) if self.codec is Codec.ZLIB else self.body
        head = _OUTBOX.pack(b"SKO1", self.stream, self.acked, self.prev, self.first, self.last, self.codec)
        return head + _CRC.pack(zlib.crc32(packed, zlib.crc32(head))) + packed

    @classmethod
    def decode(cls, data: bytes) -> OutboxFrame:
        """Raises `MessageError`: truncated, bad checksum, impossible numbers, a decompression bomb."""
        start = _OUTBOX.size + _CRC.size
        if len(data) < start:
            raise MessageError(f"an outbox frame has at least {start} bytes, not {len(data)}")
        magic, stream, acked, prev, first, last, codec = _OUTBOX.unpack_from(data)
        (crc,) = _CRC.unpack_from(data, _OUTBOX.size)
        packed = data[start:]
        if magic != b"SKO1" or codec not in (Codec.RAW, Codec.ZLIB):
            raise MessageError("not an outbox frame of version 1")
        if zlib.crc32(packed, zlib.crc32(data[: _OUTBOX.size])) != crc:
            raise MessageError("outbox frame: the checksum does not match")
        if not prev < first <= last < 2**63 or not acked < first:
            raise MessageError(f"outbox frame: impossible sequence {acked}, {prev}, {first}, {last}")
        body = packed if codec == Codec.RAW else _inflate(packed)
        return cls(
            stream=stream, acked=acked, prev=prev, first=first, last=last, body=body, codec=Codec(codec)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFrame:
    """Bytes of a blob at an offset, or the reason why there are none."""

    transfer: int
    offset: int
    data: bytes
    is_error: bool = False
    """Then ``data`` is an `ErrorReport` as JSON."""

    def encode(self) -> bytes:
        return _BLOCK.pack(b"SKB1", self.transfer, self.offset, self.is_error) + self.data

    @classmethod
    def decode(cls, data: bytes) -> BlockFrame:
        """Raises `MessageError`: not a block frame."""
        if len(data) < _BLOCK.size:
            raise MessageError(f"a block frame has at least {_BLOCK.size} bytes, not {len(data)}")
        magic, transfer, offset, kind = _BLOCK.unpack_from(data)
        if magic != b"SKB1" or kind > 1:
            raise MessageError("not a block frame of version 1")
        return cls(transfer=transfer, offset=offset, data=data[_BLOCK.size :], is_error=bool(kind))


def _inflate(packed: bytes) -> bytes:
    engine = zlib.decompressobj()
    try:
        body = engine.decompress(packed, _MAX_BODY)
    except zlib.error as error:
        raise MessageError(f"outbox frame: {error}") from error
    if not engine.eof or engine.unused_data:
        raise MessageError(f"outbox frame: the body is cut, or inflates beyond {_MAX_BODY} bytes")
    return body
