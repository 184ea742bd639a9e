"""What is true of a model on this device: for the fleet's report and for ``skerry-runtime status``. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from skerry_contract.messages import ModelReport

from .record import Record
from .serving import Serving
from .slots import Current
from .update import UpdateState, phase_of


def report(record: Record, serving: Serving, progress: tuple[int, int]) -> ModelReport:
    """For the fleet; ``progress`` is bytes done and bytes in total of a download."""
    active = serving.answering
    done, total = progress if record.state is UpdateState.DOWNLOADING else (0, 0)
    return ModelReport(
        active=active.digest if active else None,
        active_version=active.manifest.version if active else "",
        active_variant=active.info.variant if active else "",
        target=record.target,
        target_version=record.version,
        phase=phase_of(record.state),
        error=record.error,
        since=record.since,
        bytes_done=done,
        bytes_total=total,
    )


def status(
    record: Record, serving: Serving, current: Current | None, progress: tuple[int, int]
) -> dict[str, Any]:
    """For people, as plain JSON."""
    active, worker = serving.answering, serving.worker
    health = worker.health if worker else None
    ready = worker.ready if worker else None
    told = report(record, serving, progress)
    return {
        "active": active
        and {
            "digest": active.digest,
            "version": active.manifest.version,
            "release": active.manifest.release,
            "variant": active.info.variant,
            "engine": active.manifest.variant(active.info.variant).engine,
            "engine_version": ready.engine_version if ready else "",
            "execution": ready.execution if ready else "",
            "generation": active.number,
            "pid": worker.pid if worker else None,
            "budgets": asdict(active.info.budgets),
            "reason": active.info.reason,
        },
        "health": {
            "requests": health.requests if health else 0,
            "failures": health.failures if health else 0,
            "latency_p95_us": health.latency_p95_us if health else ready.latency_p95_us if ready else 0,
            "rss_bytes": health.rss_bytes if health else ready.rss_bytes if ready else 0,
        },
        "state": record.state,
        "phase": told.phase,
        "target": record.target,
        "target_version": record.version,
        "transaction": record.transaction,
        "reason": record.reason,
        "error": None
        if record.error is None
        else {
            "code": record.error.code,
            "message": record.error.message,
            "hint": record.error.hint,
        },
        "since": record.since,
        "bytes_done": told.bytes_done,
        "bytes_total": told.bytes_total,
        "floor": current.floor if current else 0,
        "fallback_generation": current.previous if current else 0,
    }
