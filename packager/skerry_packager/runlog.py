"""The log of packaging runs: every variant that was ever tried, what it cost, and why it won or lost.

One SQLite file, made by sqlite-utils, so that Datasette or plain SQL can browse it; its columns are described
in `skerry_packager.runlog_columns`. A run and its variants are written in one transaction, or not at all, and
several runs may write at once. Here measurements of this host belong, never into a bundle.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skerry_contract.errors import InputError, NotFoundError, SkerryError, StorageError

from .runlog_columns import RUNS, SCHEMA, VARIANTS, Column

if TYPE_CHECKING:
    from .results import Choice, PackResult, Target, VariantResult

DEFAULT_PATH: Final = Path("skerry-runs.db")
_BUSY_SECONDS: Final = 30.0
"""How long a writer waits for another one. A run writes for some milliseconds."""


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
    partial: tuple[VariantResult, ...] = ()
    """Of a run that failed: what it had tried until then."""
    error: SkerryError | None = None
    bundle: str = ""
    """Path of the file."""
    bundle_digest: str = ""
    bundle_bytes: int = 0
    targets: tuple[Target, ...] = ()
    """The limits that the choice was made under, one for each profile."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options that change the outcome and have no column of their own; JSON values only."""
    command: tuple[str, ...] = ()
    """The command line that does the same again; never a password."""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    """As `skerry_packager.lineage.lineage_document` gives it; of a run that failed, what was told."""
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
            self._db = sqlite_utils.Database(sqlite3.connect(path, timeout=_BUSY_SECONDS))
            if self._schema() < SCHEMA:
                self._upgrade()
            if self._schema() > SCHEMA:
                raise StorageError(
                    f"{path} was written by a newer Skerry (schema {self._schema()})",
                    hint="Update Skerry, or use another --run-log.",
                )

    def record(self, run: Run) -> int:
        """Write a run and its variants; its number."""
        row = document(run)
        variants = row.pop("variants")
        del row["id"]
        with self._writing():
            number = int(self._db.table("runs").insert(_packed(row, RUNS)).last_pk)  # type: ignore[arg-type]
            self._db.table("variants").insert_all(
                _packed({"run": number, "position": position, **variant}, VARIANTS)
                for position, variant in enumerate(variants)
            )
        return number

    def runs(
        self, *, name: str = "", failed: bool = False, since: str = "", limit: int = 20
    ) -> list[dict[str, Any]]:
        """The latest runs, newest first.

        Args:
            name: only runs of this model.
            failed: only runs that failed.
            since: only runs that began then or later; ISO 8601, UTC, of any precision.
            limit: so many at most.
        """
        wanted = {"name = ?": name, "outcome = ?": "failed" if failed else "", "started >= ?": since}
        filters = {condition: value for condition, value in wanted.items() if value}
        with self._guard():
            rows = self._db.table("runs").rows_where(
                " and ".join(filters) or None, list(filters.values()) or None, order_by="id desc", limit=limit
            )
            return [_unpacked(row, RUNS) for row in rows]

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
                **_unpacked(rows[0], RUNS),
                "variants": [_unpacked(row, VARIANTS) for row in variants],
            }

    def close(self) -> None:
        self._db.close()

    def _schema(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _upgrade(self) -> None:
        """Tables and columns that are missing; another process may be doing the same."""
        with self._writing():
            if self._schema() >= SCHEMA:
                return
            self._db.table("runs").create(_kinds(RUNS), pk="id", if_not_exists=True)
            self._db.table("variants").create(
                _kinds(VARIANTS),
                pk=("run", "position"),
                foreign_keys=[("run", "runs", "id")],
                if_not_exists=True,
            )
            for name, columns in (("runs", RUNS), ("variants", VARIANTS)):
                have = self._db.table(name).columns_dict
                for column in [column for column in columns if column not in have]:
                    self._db.table(name).add_column(column, columns[column].kind)
            self._db.conn.execute(f"PRAGMA user_version = {SCHEMA}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction that holds the write lock from its start: a reader that becomes a writer halfway
        would be refused at once, instead of waiting."""
        with self._guard():
            self._db.conn.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.conn.rollback()
                raise
            self._db.conn.commit()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(
                f"the run log {self.path} cannot be used: {error}", hint="Name another file by --run-log."
            ) from error


def document(run: Run) -> dict[str, Any]:
    """A run as `RunLog.run` gives it back, without having been written: JSON values only."""
    found: dict[str, Any] = dict.fromkeys(RUNS)
    found |= {
        "started": run.started, "seconds": round(run.seconds, 3),
        "outcome": "failed" if run.error else "packed",
        "name": run.name, "version": run.version, "release": run.release, "source_file": run.source_file,
        "objective": run.objective, "max_drop": run.max_drop, "profiles": list(run.profiles),
        "bundle": run.bundle or None, "bundle_digest": run.bundle_digest or None,
        "bundle_bytes": run.bundle_bytes or None, "lineage": run.lineage, "environment": run.environment,
        "targets": {target.name: _target(target) for target in run.targets},
        "options": run.options, "command": list(run.command),
    }  # fmt: skip
    if run.error:
        found |= {
            "error_code": run.error.code,
            "error": run.error.message,
            "error_hint": run.error.hint or None,
        }
    if run.result is None:
        fp32 = run.partial[0].size_bytes if run.partial else 0
        found["variants"] = [_row(variant, (), fp32) for variant in run.partial]
        return dict(_plain(found))
    result = run.result
    found |= {
        "source_digest": "sha256:" + result.inspection.sha256,
        "source_format": result.inspection.format,
        "source_bytes": result.inspection.size_bytes,
        "task": result.task,
        "metric": result.metric,
        "labelled": int(result.labelled),
        "choices": {
            choice.target: {"variants": list(choice.variants), "pareto": list(choice.pareto)}
            for choice in result.choices
        },
        "chosen": list(result.chosen),
        "notes": list(result.notes),
        "splits": {name: asdict(split) for name, split in result.splits.items()},
        "golden_rows": list(result.golden.samples),
        "preprocessing": result.preprocessing,
        "states": result.states,
        "variants": [variant_row(result, variant) for variant in result.variants],
    }
    return dict(_plain(found))


def variant_row(result: PackResult, variant: VariantResult) -> dict[str, Any]:
    """What is known of one variant, flat: a row of the log, of ``--json`` and of the table on the screen."""
    return _row(variant, result.choices, result.variants[0].size_bytes)


def _row(variant: VariantResult, choices: Sequence[Choice], fp32_bytes: int) -> dict[str, Any]:
    search, held_out = variant.fidelity, variant.held_out
    latency, memory = variant.latency, variant.memory
    name = variant.name
    return {
        "name": name,
        "verdict": str(variant.verdict),
        "chosen": any(name == choice.variants[0] for choice in choices),
        "chosen_for": [choice.target for choice in choices if name == choice.variants[0]],
        "fallback_for": [choice.target for choice in choices if name in choice.variants[1:]],
        "pareto_for": [choice.target for choice in choices if name in choice.pareto],
        "reason": variant.reason,
        "lost": {choice.target: choice.lost[name] for choice in choices if name in choice.lost},
        "digest": variant.digest or None,
        "size": variant.size_bytes or None,
        "size_ratio": round(variant.size_bytes / fp32_bytes, 4)
        if variant.size_bytes and fp32_bytes
        else None,
        "ir": variant.ir or None,
        "opset": variant.opset or None,
        "metric": search.metric if search else None,
        "output": search.output if search else None,
        "samples": search.samples if search else None,
        "reference": search.reference if search else None,
        "score": search.candidate if search else None,
        "drop": search.drop if search else None,
        "drop_bound": search.drop_bound if search else None,
        "exact_bound": search.exact_bound if search else None,
        "mean_kl": search.mean_kl if search else None,
        "sqnr_db": search.sqnr_db if search else None,
        "max_abs_error": search.max_abs_error if search else None,
        "held_out_samples": held_out.samples if held_out else None,
        "held_out_reference": held_out.reference if held_out else None,
        "held_out_score": held_out.candidate if held_out else None,
        "held_out_drop": held_out.drop if held_out else None,
        "held_out_bound": held_out.drop_bound if held_out else None,
        "held_out_exact_bound": held_out.exact_bound if held_out else None,
        "latency_p50_us": latency.p50_us if latency else None,
        "latency_p95_us": latency.p95_us if latency else None,
        "latency_ratio": latency.ratio if latency else None,
        "latency_best_ratio": latency.best_ratio if latency else None,
        "latency_pairs": latency.pairs if latency else None,
        "estimates": {target: asdict(estimate) for target, estimate in variant.estimates.items()},
        "slowdowns": variant.slowdowns,
        "ram_bytes": (memory.peak_rss_bytes if memory else variant.ram_predicted_bytes) or None,
        "ram_predicted_bytes": variant.ram_predicted_bytes or None,
        "ram_upper_bytes": variant.ram_upper_bytes or None,
        "ram_measured_bytes": memory.peak_rss_bytes if memory else None,
        "load_ms": memory.load_ms if memory else None,
        "sensitivity": [asdict(item) for item in variant.sensitivity],
        "recipe": variant.recipe,
        "note": variant.note,
    }


def _target(target: Target) -> dict[str, Any]:
    return {
        "size_bytes": target.size_bytes, "flash_bytes": target.flash_bytes, "ram_bytes": target.ram_bytes,
        "latency_p95_us": target.latency_p95_us, "max_slowdown": target.max_slowdown,
        "arch": target.arch, "isa": list(target.isa), "engines": dict(target.engines),
        "max_ir": target.max_ir, "max_opset": target.max_opset,
    }  # fmt: skip


def _kinds(columns: Mapping[str, Column]) -> dict[str, Any]:
    return {name: column.kind for name, column in columns.items()}


def _plain(value: Any) -> Any:
    """In JSON's types and in the order of the log, so that a document that was never written equals one that
    was read back. A figure that is not finite is no figure."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _packed(row: Mapping[str, Any], columns: Mapping[str, Column]) -> dict[str, Any]:
    """As SQLite stores it: JSON columns as text."""
    return {
        key: json.dumps(value, sort_keys=True) if columns[key].json and value is not None else value
        for key, value in _plain(row).items()
    }


def _unpacked(row: Mapping[str, Any], columns: Mapping[str, Column]) -> dict[str, Any]:
    return {
        key: json.loads(value) if key in columns and columns[key].json and value is not None else value
        for key, value in row.items()
    }
