"""Binary frames: every damaged bit is seen, and nothing inflates beyond its bound."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_contract.errors import MessageError
from skerry_contract.frames import BlockFrame, Codec, OutboxFrame

HEAD = ">4s8sQQQQB"
"""Of an outbox frame, without the checksum."""


@st.composite
def outbox_frames(draw: st.DrawFn) -> OutboxFrame:
    acked, prev, first, last = sorted(draw(st.sets(st.integers(0, 2**63 - 1), min_size=4, max_size=4)))
    if draw(st.booleans()):
        acked, prev = prev, acked
    return OutboxFrame(
        stream=draw(st.binary(min_size=8, max_size=8)),
        acked=draw(st.sampled_from([0, acked, prev])),
        prev=prev,
        first=first,
        last=draw(st.sampled_from([first, last])),
        body=draw(st.binary(max_size=300)),
        codec=draw(st.sampled_from(Codec)),
    )


def frame(
    body: bytes = b"",
    *,
    numbers: tuple[int, int, int, int] = (0, 0, 1, 1),
    codec: int = 0,
    magic: bytes = b"SKO1",
) -> bytes:
    """A frame with a right checksum and anything else in it."""
    head = struct.pack(HEAD, magic, bytes(8), *numbers, codec)
    return head + struct.pack(">I", zlib.crc32(body, zlib.crc32(head))) + body


EXAMPLE = OutboxFrame(
    stream=b"\1\2\3\4\5\6\7\x08", acked=4, prev=6, first=7, last=7, body=b"a window", codec=Codec.ZLIB
)


@given(outbox_frames())
def test_an_outbox_frame_arrives(sent: OutboxFrame) -> None:
    assert OutboxFrame.decode(sent.encode()) == sent


def test_the_layout_is_pinned() -> None:
    raw = OutboxFrame(stream=b"\1\2\3\4\5\6\7\x08", acked=4, prev=6, first=7, last=9, body=b"rows").encode()
    assert raw.hex() == (
        "534b4f31"
        "0102030405060708"
        "0000000000000004"
        "0000000000000006"
        "0000000000000007"
        "0000000000000009"
        "00"
        "2b081399"
        "726f7773"
    )


def test_every_flipped_bit_of_an_outbox_frame_is_refused() -> None:
    raw = EXAMPLE.encode()
    for at in range(8 * len(raw)):
        broken = bytearray(raw)
        broken[at // 8] ^= 1 << at % 8
        with pytest.raises(MessageError):
            OutboxFrame.decode(bytes(broken))


def test_a_cut_or_extended_outbox_frame_is_refused() -> None:
    raw = EXAMPLE.encode()
    for size in range(len(raw)):
        with pytest.raises(MessageError):
            OutboxFrame.decode(raw[:size])
    with pytest.raises(MessageError):
        OutboxFrame.decode(raw + b"\0")


@pytest.mark.parametrize(
    "numbers",
    [
        (0, 0, 0, 0),  # sequence numbers begin at 1
        (0, 1, 1, 1),  # a row is not its own predecessor
        (0, 2, 1, 1),
        (0, 0, 2, 1),  # it ends before it begins
        (1, 0, 1, 1),  # the device needs an answer for what it sends
        (9, 0, 1, 1),
        (0, 0, 1, 2**63),  # beyond what a database column holds
        (0, 0, 1, 2**64 - 1),
    ],
)
def test_impossible_sequences_are_refused(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(MessageError, match="impossible sequence"):
        OutboxFrame.decode(frame(numbers=numbers))


@pytest.mark.parametrize("numbers", [(0, 0, 1, 1), (3, 2, 9, 12), (2, 8, 9, 9), (8, 8, 9, 2**63 - 1)])
def test_possible_sequences_are_accepted(numbers: tuple[int, int, int, int]) -> None:
    read = OutboxFrame.decode(frame(numbers=numbers))
    assert (read.acked, read.prev, read.first, read.last) == numbers


@pytest.mark.parametrize("wrong", [{"magic": b"SKO2"}, {"magic": b"SKB1"}, {"codec": 2}, {"codec": 255}])
def test_another_version_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(MessageError, match="not an outbox frame of version 1"):
        OutboxFrame.decode(frame(**wrong))  # type: ignore[arg-type]


@pytest.mark.attack
@pytest.mark.parametrize("size", [(4 << 20) + 1, 1 << 28])
def test_b9_a_body_never_inflates_beyond_4_mib(size: int) -> None:
    with pytest.raises(MessageError, match="inflates beyond"):
        OutboxFrame.decode(frame(zlib.compress(bytes(size), 9), codec=1))


@pytest.mark.parametrize(
    "body", [b"", b"not zlib", zlib.compress(b"rows")[:-1], zlib.compress(b"rows") + b"more"]
)
def test_a_damaged_body_is_refused(body: bytes) -> None:
    with pytest.raises(MessageError):
        OutboxFrame.decode(frame(body, codec=1))


@given(st.binary(max_size=120))
def test_any_bytes_are_no_outbox_frame(data: bytes) -> None:
    with pytest.raises(MessageError):
        OutboxFrame.decode(data)
    with pytest.raises(MessageError):
        OutboxFrame.decode(b"SKO1" + data)


@given(st.binary(max_size=100), st.sampled_from([0, 1]))
def test_any_body_is_read_or_refused(body: bytes, codec: int) -> None:
    try:
        read = OutboxFrame.decode(frame(body, codec=codec))
    except MessageError:
        assert codec == 1
    else:
        assert read.body == (body if codec == 0 else zlib.decompress(body))


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.binary(max_size=100), st.booleans())
def test_a_block_arrives(transfer: int, offset: int, data: bytes, is_error: bool) -> None:
    sent = BlockFrame(transfer=transfer, offset=offset, data=data, is_error=is_error)
    assert BlockFrame.decode(sent.encode()) == sent


def test_the_layout_of_a_block_is_pinned() -> None:
    raw = BlockFrame(transfer=1, offset=65536, data=b"xyz", is_error=False).encode()
    assert raw.hex() == "534b4231" + "0000000000000001" + "0000000000010000" + "00" + "78797a"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"SKB1",
        b"SKB1" + bytes(16),
        b"SKB2" + bytes(17),
        b"SKB1" + bytes(16) + b"\2",
        b"SKO1" + bytes(50),
    ],
)
def test_what_is_no_block_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        BlockFrame.decode(data)
