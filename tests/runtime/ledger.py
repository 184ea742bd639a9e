"""The fleet's account of what a device told: every row once, no window twice, nothing missing in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.runtime.agent_world import Device, Headquarters
from tests.waiting import wait_until

from skerry_contract import summary
from skerry_contract.frames import OutboxFrame


def settle(device: Device, headquarters: Headquarters) -> None:
    """Until nothing waits and both sides name the same last row."""

    def settled() -> bool:
        outbox = device.status()["outbox"]
        done = {bytes.fromhex(outbox["stream"]): outbox["acknowledged"]}
        return outbox["waiting_rows"] == 0 and headquarters.committed == done

    wait_until(settled, "the last acknowledgement")


def check_ledger(headquarters: Headquarters, stream: str) -> int:
    """One stream, every row once and the same at each repetition, up to what headquarters committed.

    Returns the number of the last row.
    """
    rows: dict[int, OutboxFrame] = {}
    for frame in list(headquarters.frames):
        assert frame.stream.hex() == stream, "another stream was begun"
        known = rows.setdefault(frame.first, frame)
        assert (known.last, known.body) == (frame.last, frame.body), "a number was used twice"
    expected = 1
    for first in sorted(rows):
        assert first == expected, f"rows {expected} to {first - 1} are lost"
        expected = rows[first].last + 1
    assert headquarters.committed == {bytes.fromhex(stream): expected - 1}
    check_windows([frame.body for frame in rows.values() if frame.body[:4] == summary.MAGIC])
    return expected - 1


def check_windows(bodies: Sequence[bytes]) -> None:
    """No window has the identity of another."""
    windows = [summary.decode(body) for body in bodies]
    twice = [key for key, times in Counter((w.boot, w.seq) for w in windows).items() if times > 1]
    assert not twice, f"windows came twice: {twice}"
