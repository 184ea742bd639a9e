"""Slots and records that note on a board what they are asked to do, and when they have promised it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.torture.board import Board
from tests.torture.patches import patch

from skerry_runtime.agent import model as model_module
from skerry_runtime.agent import offline as offline_module
from skerry_runtime.agent import runner as runner_module
from skerry_runtime.agent.record import Record
from skerry_runtime.agent.record import write_record as honest_write_record
from skerry_runtime.agent.slots import Current, Generation, ModelSlots, Pending


def note_slots(board: Board) -> None:
    """From now on every change of a pointer is noted: when it is begun, and when it is for good."""

    class NotedSlots(ModelSlots):
        def set_pending(self, generation: Generation) -> Pending:
            board.note(may="pending", release=generation.manifest.release)
            pending = super().set_pending(generation)
            board.note(is_="pending", release=generation.manifest.release, tries=pending.tries)
            return pending

        def take_try(self) -> Pending | None:
            pending = super().take_try()
            if pending is not None:
                board.note(is_="tries", tries=pending.tries)
            return pending

        def drop_pending(self) -> None:
            super().drop_pending()
            board.note(is_="no pending")

        def confirm(self, generation: Generation, *, raise_floor: bool = True) -> Current:
            board.note(may="current", release=generation.manifest.release)
            current = super().confirm(generation, raise_floor=raise_floor)
            board.note(is_="current", release=generation.manifest.release, floor=current.floor)
            return current

        def fall_back(self) -> Generation:
            # Which one it will be is known before it begins: the last good one.
            before = self.current()
            if before is not None and before.previous:
                board.note(may="current", release=self.load(before.previous).manifest.release)
            generation = super().fall_back()
            board.note(is_="current", release=generation.manifest.release, floor=self.floor(), back=True)
            return generation

        def quarantine(self, digest: Any, reason: Any, since: int) -> None:
            board.note(may="bad", digest=digest)
            super().quarantine(digest, reason, since)
            board.note(is_="bad", digest=digest)

        def release_quarantine(self, digest: Any) -> None:
            board.note(may="not bad", digest=digest)
            super().release_quarantine(digest)
            board.note(is_="not bad", digest=digest)

    def write_record(path: Path, record: Record) -> None:
        board.note(may="record", state=record.state)
        honest_write_record(path, record)
        board.note(is_="record", state=record.state)

    patch(model_module, "ModelSlots", NotedSlots)
    patch(runner_module, "write_record", write_record)
    patch(offline_module, "write_record", write_record)
    patch(offline_module, "ModelSlots", NotedSlots)
