"""From committed windows to drift scores and alerts.

The store itself says what is not scored yet, so a kill loses no window: what was half done is done again, and
an alert that is raised twice is one alert.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgspec

from skerry_contract.errors import SkerryError, StorageError
from skerry_contract.messages import Severity
from skerry_contract.summary import WindowSummary, decode

from ..alerts.service import AlertKind, AlertService
from ..clock import Clock
from ..db import Database
from ..telemetry import repository
from ..telemetry.days import DayFiles
from ..telemetry.repository import Score, UnscoredWindow
from ..telemetry.specs import Reference, References
from .detector import N_MIN, Detector, Finding, Judgement, Phase, capped, judge

log = logging.getLogger(__name__)

UNJUDGED: Final = "-"
"""Severity of a window that was merged into a later one, or is too small and out of order."""
CAUSE: Final = "distribution"
_BATCH: Final = 200
_RETRY_S: Final = 2.0
_SHOWN: Final = 5
"""Features in an alert's text; its data has all that drifted."""

_Key = tuple[str, str]
"""Device and model."""


class _Memory(msgspec.Struct, frozen=True):
    """What is kept of a device and model between windows."""

    last_at_ms: int
    detector: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """An alert to be raised, brought up to date or resolved."""

    device: str
    reference: Reference
    judgement: Judgement


class DriftService:
    """A thread of its own: scoring never delays an acknowledgement."""

    def __init__(
        self, *, db: Database, days: DayFiles, clock: Clock, references: References, alerts: AlertService
    ) -> None:
        self._db = db
        self._days = days
        self._clock = clock
        self._references = references
        self._alerts = alerts
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """New windows are committed."""
        self._wake.set()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def catch_up(self, newest: int | None = None) -> int:
        """Score what is not scored, in the newest files or in all. Returns how many windows."""
        done = 0
        for day in reversed(self._days.days()[:newest]):
            while not self._stop.is_set():
                with self._days.read(day) as db:
                    windows = repository.unscored(db, _BATCH)
                if not windows:
                    break
                self._score(day, windows)
                done += len(windows)
        return done

    def _run(self) -> None:
        newest: int | None = None
        while not self._stop.is_set():
            self._wake.clear()
            try:
                self.catch_up(newest)
                newest = 2  # today's and yesterday's: nothing else is written any more
                self._wake.wait()
            except StorageError as error:
                log.error("drift waits: %s", error)
                self._stop.wait(_RETRY_S)

    def _score(self, day: str, windows: Sequence[UnscoredWindow]) -> None:
        today = self._days.today()
        scores: list[Score] = []
        changes: list[_Change] = []
        memories: dict[_Key, bytes] = {}
        with self._days.read(today) as db:
            for window in windows:
                key = (window.device, window.model)
                kept = memories.get(key) or repository.detector_state(db, *key)
                score, memory, change = self._judged(window, kept)
                scores.append(score)
                if memory is not None:
                    memories[key] = memory
                if change is not None:
                    changes.append(change)
            observed = {model: repository.detector_count(db, model) for _, model in memories}
        if changes:
            self._tell(changes, observed)
        now = self._clock.now_ms()
        if day != today:
            with self._days.write(day) as db:
                repository.save_scores(db, scores)
        with self._days.write() as db:
            repository.save_detectors(db, memories, now)
            if day == today:
                repository.save_scores(db, scores)

    def _judged(
        self, window: UnscoredWindow, kept: bytes | None
    ) -> tuple[Score, bytes | None, _Change | None]:
        """The score of a window, what to remember, and what changes of the alert."""
        try:
            summary = decode(window.body)
            reference = self._references.find(summary.bundle)
            memory = msgspec.msgpack.decode(kept, type=_Memory) if kept else None
            if memory is not None and window.at_ms < memory.last_at_ms:
                return _out_of_order(window, summary, reference), None, None
            detector = Detector(reference.spec, memory.detector if memory else None)
            judgement = detector.update(summary)
        except (SkerryError, ArithmeticError, LookupError, ValueError):
            log.exception("window %s of %s cannot be scored", window.id, window.device)
            return Score(id=window.id, severity=UNJUDGED, scores=None), None, None
        state = msgspec.msgpack.encode(_Memory(last_at_ms=window.at_ms, detector=detector.dump()))
        if judgement is None:
            return Score(id=window.id, severity=UNJUDGED, scores=None), state, None
        told = _change(window.device, reference, judgement)
        return _scored(window.id, judgement.rows, judgement.findings), state, told

    def _tell(self, changes: Sequence[_Change], observed: dict[str, int]) -> None:
        with self._db.write() as db:
            for change in changes:
                device, reference, judgement = change.device, change.reference, change.judgement
                if judgement.phase is Phase.NORMAL:
                    self._alerts.resolve(
                        db, AlertKind.DRIFT, device=device, model=reference.model, cause=CAUSE
                    )
                    continue
                affected = self._alerts.open_devices(db, AlertKind.DRIFT, reference.model) | {device}
                share = len(affected) / max(observed.get(reference.model, 0), len(affected))
                drifted = [finding for finding in judgement.findings if _matters(finding)]
                self._alerts.raise_alert(
                    db,
                    AlertKind.DRIFT,
                    capped(judgement.severity or Severity.WARN, share),
                    device=device,
                    model=reference.model,
                    cause=CAUSE,
                    title=f"{device}: what {reference.model} sees is not what it was trained on",
                    detail="; ".join(finding.sentence() for finding in drifted[:_SHOWN]),
                    data={
                        "version": reference.version,
                        "digest": reference.digest,
                        "rows": judgement.rows,
                        "features": [_view(finding) for finding in drifted],
                    },
                )


def _change(device: str, reference: Reference, judgement: Judgement) -> _Change | None:
    """An alert follows the phase; a window of a suspect or recovering device changes nothing yet."""
    over = judgement.phase is Phase.NORMAL and judgement.before is Phase.RECOVERING
    if judgement.phase is Phase.ALERT or over:
        return _Change(device=device, reference=reference, judgement=judgement)
    return None


def _out_of_order(window: UnscoredWindow, summary: WindowSummary, reference: Reference) -> Score:
    """A late window is scored where it belongs; the detector has gone on and is not told."""
    if summary.rows < N_MIN:
        return Score(id=window.id, severity=UNJUDGED, scores=None)
    return _scored(window.id, summary.rows, judge(reference.spec, summary))


def _scored(window_id: int, rows: int, findings: Sequence[Finding]) -> Score:
    worst = findings[0].severity if findings else None
    body = {"rows": rows, "features": [_view(finding) for finding in findings]}
    return Score(id=window_id, severity=worst or "", scores=msgspec.json.encode(body))


def _view(finding: Finding) -> dict[str, Any]:
    numbers = {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in asdict(finding.distance).items()
    }
    return {**numbers, "severity": finding.severity or "", "sentence": finding.sentence()}


def _matters(finding: Finding) -> bool:
    return finding.severity not in (None, Severity.INFO)
