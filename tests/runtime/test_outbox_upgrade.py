"""An outbox of version 1 is taken over without loss: ``tests/data/outbox/v1``, which is never made again.

``expected.json`` holds what that version itself would have sent of it, written by its own code.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.outbox_rows import STAMP, event

from skerry_contract.frames import OutboxFrame
from skerry_runtime.agent.outbox import MIN_BUDGET_BYTES, Outbox, Priority, Row

V1 = Path(__file__).parents[1] / "data" / "outbox" / "v1"


@pytest.fixture
def expected() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((V1 / "expected.json").read_text())
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(shutil.copy(V1 / "outbox.db", tmp_path / "outbox.db"))


def told(kind: int, frame: OutboxFrame) -> tuple[object, ...]:
    """All that the fleet goes by; the frame says anew which rows came before."""
    return kind, frame.stream, frame.prev, frame.first, frame.last, bytes(frame.body)


def told_of(rows: list[Row]) -> list[tuple[object, ...]]:
    return [told(row.kind, row.frame) for row in rows]


def test_every_row_of_version_1_is_sent_as_it_would_have_been(file: Path, expected: dict[str, Any]) -> None:
    wanted = [told(row["kind"], OutboxFrame.decode(bytes.fromhex(row["frame"]))) for row in expected["rows"]]
    for _ in range(2):  # upgraded, and opened again
        outbox = Outbox(file, MIN_BUDGET_BYTES)
        assert outbox.set_aside is None
        assert (outbox.stream.hex(), outbox.done_seq) == (expected["stream"], expected["done"])
        assert outbox.waiting() == expected["waiting"] == len(wanted)
        assert told_of(list(outbox.rows_after(outbox.done_seq, 1000))) == wanted
        gaps = [[gap.first, gap.last, int(gap.priority), gap.reason] for gap in outbox.gaps()]
        assert gaps == expected["gaps"] != []
        outbox.close()


def test_it_goes_on_where_version_1_ended(file: Path, expected: dict[str, Any]) -> None:
    outbox = Outbox(file, MIN_BUDGET_BYTES)
    last = OutboxFrame.decode(bytes.fromhex(expected["rows"][-1]["frame"])).last
    assert outbox.append_events([event()], Priority.AUDIT, STAMP) == last + 1
    outbox.acknowledge(bytes.fromhex(expected["stream"]), last + 1)
    assert (outbox.waiting(), outbox.done_seq) == (0, last + 1)
    assert [gap.told for gap in outbox.gaps()] == [False], "the fleet has not heard of it yet"
