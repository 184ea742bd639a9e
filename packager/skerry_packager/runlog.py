"""The log of packaging runs: every variant that was ever tried, what it cost, and why it won or lost.

One SQLite file, made by sqlite-utils, so that Datasette or plain SQL can browse it. A run and its variants
are written in one transaction, or not at all. Here measurements of this host belong, never into a bundle.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skerry_contract.errors import InputError, NotFoundError, SkerryError, StorageError

if TYPE_CHECKING:
    from .results import PackResult, VariantResult

DEFAULT_PATH: Final = Path("skerry-runs.db")
SCHEMA: Final = 2
"""``PRAGMA user_version`` of the file."""

_RUNS: Final[Mapping[str, type]] = {
    "id": int, "started": str, "seconds": float, "outcome": str, "error_code": str, "error": str, "name": str,
    "version": str, "release": int, "source_file": str, "source_digest": str, "objective": str,
    "metric": str, "max_drop": float, "profiles": str, "chosen": str, "bundle": str, "bundle_digest": str,
    "bundle_bytes": int, "notes": str, "splits": str, "lineage": str, "environment": str,
}  # fmt: skip
_VARIANTS: Final[Mapping[str, type]] = {
    "run": int, "position": int, "name": str, "verdict": str, "chosen": int,
    "chosen_for": str, "fallback_for": str, "reason": str, "lost": str,
    "digest": str, "size": int, "size_ratio": float, "metric": str, "samples": int,
    "drop": float, "drop_bound": float, "exact_bound": float, "score": float,
    "held_out_samples": int, "held_out_drop": float, "held_out_bound": float, "held_out_exact_bound": float,
    "held_out_score": float,
    "latency_p50_us": float, "latency_p95_us": float, "latency_ratio": float,
    "ram_bytes": int,
    "ram_predicted_bytes": int, "ram_measured_bytes": int, "load_ms": float, "recipe": str, "note": str,
}  # fmt: skip
_RUN_JSON: Final = frozenset({"profiles", "chosen", "notes", "splits", "lineage", "environment"})
_VARIANT_JSON: Final = frozenset({"chosen_for", "fallback_for", "lost", "recipe"})
"""Columns that hold JSON text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One call of ``skerry pack``, whatever became of it."""

    started: str
    """ISO 8601, UTC."""
    seconds: float
    name: str
    version: str
    release: int
    source_file: str
    objective: str
    max_drop: float
    profiles: tuple[str, ...]
    result: PackResult | None = None
    """None if it failed before anything could be chosen."""
    error: SkerryError | None = None
    bundle: str = ""
    """Path of the file."""
    bundle_digest: str = ""
    bundle_bytes: int = 0
    lineage: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


class RunLog:
    """The file, opened; made at the first use.

    Raises:
        InputError: in the constructor, if its folder is missing or, without `create`, the file itself.
        StorageError: in every method, if the file cannot be used.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        # Imported here: it takes longer than all of `skerry --help`.
        import sqlite_utils

        self.path = path
        if not create and not path.is_file():
            raise InputError(
                f"there is no run log {path}", hint="'skerry pack' makes one; --run-log names another file."
            )
        if not path.parent.is_dir():
            raise InputError(
                f"there is no folder {path.parent} for the run log {path}",
                hint="Make it, or name another file by --run-log.",
            )
        with self._guard():
            self._db = sqlite_utils.Database(sqlite3.connect(path, timeout=30.0))
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found > SCHEMA:
                raise StorageError(
                    f"{path} was written by a newer Skerry (schema {found})",
                    hint="Update Skerry, or use another --run-log.",
                )
            if found < SCHEMA:
                self._make()

    def record(self, run: Run) -> int:
        """Write a run and its variants; its number."""
        row = {
            "started": run.started, "seconds": round(run.seconds, 3),
            "outcome": "failed" if run.error else "packed",
            "error_code": run.error.code if run.error else None,
            "error": run.error.message if run.error else None,
            "name": run.name, "version": run.version, "release": run.release, "source_file": run.source_file,
            "objective": run.objective, "max_drop": run.max_drop, "profiles": run.profiles,
            "bundle": run.bundle or None, "bundle_digest": run.bundle_digest or None,
            "bundle_bytes": run.bundle_bytes or None, "lineage": run.lineage, "environment": run.environment,
        }  # fmt: skip
        if run.result is not None:
            row |= {
                "source_digest": "sha256:" + run.result.inspection.sha256,
                "metric": run.result.metric,
                "chosen": run.result.chosen,
                "notes": run.result.notes,
                "splits": {
                    name: {"rows": split.rows, "sha256": split.sha256}
                    for name, split in run.result.splits.items()
                },
            }
        with self._guard(), self._db.atomic():
            number = int(self._db.table("runs").insert(_packed(row, _RUN_JSON)).last_pk)  # type: ignore[arg-type]
            if run.result is not None:
                self._db.table("variants").insert_all(
                    _packed(
                        {"run": number, "position": position, **variant_row(run.result, variant)},
                        _VARIANT_JSON,
                    )
                    for position, variant in enumerate(run.result.variants)
                )
        return number

    def runs(self, *, name: str = "", limit: int = 20) -> list[dict[str, Any]]:
        """The latest runs, newest first."""
        with self._guard():
            rows = self._db.table("runs").rows_where(
                "name = ?" if name else None, [name] if name else None, order_by="id desc", limit=limit
            )
            return [_unpacked(row, _RUN_JSON) for row in rows]

    def run(self, number: int) -> dict[str, Any]:
        """One run, with its variants under ``variants``.

        Raises:
            NotFoundError: there is no run of that number.
        """
        with self._guard():
            rows = list(self._db.table("runs").rows_where("id = ?", [number]))
            if not rows:
                raise NotFoundError(
                    f"{self.path} has no run {number}", hint="'skerry runs list' shows what it has."
                )
            variants = self._db.table("variants").rows_where("run = ?", [number], order_by="position")
            return {
                **_unpacked(rows[0], _RUN_JSON),
                "variants": [_unpacked(row, _VARIANT_JSON) for row in variants],
            }

    def close(self) -> None:
        self._db.close()

    def _make(self) -> None:
        self._db.table("runs").create(dict(_RUNS), pk="id", if_not_exists=True)
        self._db.table("variants").create(
            dict(_VARIANTS), pk=("run", "position"), foreign_keys=[("run", "runs", "id")], if_not_exists=True
        )
        # A log of an older schema keeps its rows and gets the columns that it lacks.
        for name, columns in (("runs", _RUNS), ("variants", _VARIANTS)):
            table = self._db.table(name)
            for column in [column for column in columns if column not in table.columns_dict]:
                table.add_column(column, columns[column])
        self._db.execute(f"PRAGMA user_version = {SCHEMA}")
        self._db.conn.commit()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(
                f"the run log {self.path} cannot be used: {error}", hint="Name another file by --run-log."
            ) from error


def variant_row(result: PackResult, variant: VariantResult) -> dict[str, Any]:
    """What is known of one variant, flat: a row of the log, of ``--json`` and of the table on the screen."""
    fp32 = result.variants[0].size_bytes
    search, held_out = variant.fidelity, variant.held_out
    latency, memory = variant.latency, variant.memory
    return {
        "name": variant.name,
        "verdict": str(variant.verdict),
        "chosen": any(variant.name == choice.variants[0] for choice in result.choices),
        "chosen_for": [choice.target for choice in result.choices if variant.name == choice.variants[0]],
        "fallback_for": [choice.target for choice in result.choices if variant.name in choice.variants[1:]],
        "reason": variant.reason,
        "lost": {
            choice.target: choice.lost[variant.name]
            for choice in result.choices
            if variant.name in choice.lost
        },
        "digest": variant.digest or None,
        "size": variant.size_bytes or None,
        "size_ratio": round(variant.size_bytes / fp32, 4) if variant.size_bytes and fp32 else None,
        "metric": search.metric if search else None,
        "samples": search.samples if search else None,
        "drop": search.drop if search else None,
        "drop_bound": search.drop_bound if search else None,
        "exact_bound": search.exact_bound if search else None,
        "score": search.candidate if search else None,
        "held_out_samples": held_out.samples if held_out else None,
        "held_out_drop": held_out.drop if held_out else None,
        "held_out_bound": held_out.drop_bound if held_out else None,
        "held_out_exact_bound": held_out.exact_bound if held_out else None,
        "held_out_score": held_out.candidate if held_out else None,
        "latency_p50_us": latency.p50_us if latency else None,
        "latency_p95_us": latency.p95_us if latency else None,
        "latency_ratio": latency.ratio if latency else None,
        "ram_bytes": (memory.peak_rss_bytes if memory else variant.ram_predicted_bytes) or None,
        "ram_predicted_bytes": variant.ram_predicted_bytes or None,
        "ram_measured_bytes": memory.peak_rss_bytes if memory else None,
        "load_ms": memory.load_ms if memory else None,
        "recipe": variant.recipe,
        "note": variant.note,
    }


def _packed(row: Mapping[str, Any], in_json: Collection[str]) -> dict[str, Any]:
    """As SQLite stores it: JSON columns as text."""
    return {
        key: json.dumps(value, sort_keys=True, default=list)
        if key in in_json and value is not None
        else value
        for key, value in row.items()
    }


def _unpacked(row: Mapping[str, Any], in_json: Collection[str]) -> dict[str, Any]:
    return {
        key: json.loads(value) if key in in_json and value is not None else value
        for key, value in row.items()
    }
