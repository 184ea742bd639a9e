"""The ledger of the fault tests finds what it is there to find."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.runtime.agent_world import Headquarters
from tests.runtime.ledger import check_ledger, check_windows

from skerry_contract.frames import OutboxFrame
from skerry_contract.summary import WindowSummary, encode

WINDOW = WindowSummary(
    spec_hash=bytes(8),
    bundle=bytes(8),
    boot=bytes(16),
    seq=1,
    start_utc_ms=0,
    start_mono_ms=0,
    duration_ms=1,
    clock_quality=0,
    rows=0,
    features=(),
)


def frame_of(first: int, body: bytes = b"row", stream: bytes = b"s" * 8) -> OutboxFrame:
    return OutboxFrame(stream=stream, acked=0, prev=first - 1, first=first, last=first, body=body)


def test_rows_that_are_lost_or_numbered_twice_are_found(headquarters: Headquarters) -> None:
    frames = [frame_of(first) for first in range(1, 5)]
    headquarters.frames[:] = [*frames, frames[1]]
    headquarters.committed = {frames[0].stream: 4}
    assert check_ledger(headquarters, frames[0].stream.hex()) == 4
    for wrong, words in {
        (frames[0], frames[2], frames[3]): "rows 2 to 2 are lost",
        (*frames, frame_of(2, b"other")): "used twice",
        (*frames, frame_of(5, stream=b"t" * 8)): "another stream",
    }.items():
        headquarters.frames[:] = wrong
        with pytest.raises(AssertionError, match=words):
            check_ledger(headquarters, frames[0].stream.hex())


def test_a_window_that_came_twice_is_found() -> None:
    check_windows([encode(WINDOW), encode(replace(WINDOW, seq=2)), encode(replace(WINDOW, boot=b"b" * 16))])
    with pytest.raises(AssertionError, match="twice"):
        check_windows([encode(WINDOW), encode(replace(WINDOW, rows=0, duration_ms=2))])
