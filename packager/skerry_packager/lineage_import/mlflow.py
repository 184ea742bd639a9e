"""MLflow runs: from a run's folder, from the SQLite file of a tracking store, or from a tracking server.

Three readers bring the same `MlflowRun`; one function maps it. Formats: MLflow's FileStore, its SQL schema
(tables ``runs``, ``params``, ``latest_metrics``, ``tags``, ``inputs``, ``datasets``) and its REST API 2.0.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from skerry_contract.errors import DataError, InputError, NotFoundError

from .files import leaves, read_table, read_text, requirements
from .values import Collector, Imported, parsed

RUN_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
_MOST_ROWS: Final = 5000
_DB_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class DatasetUse:
    """A data set that a run has logged."""

    name: str
    digest: str
    context: str
    """``training``, ``evaluation`` or what the engineer called it; empty if it was not said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowRun:
    """What MLflow knows of one run."""

    run_id: str
    status: str = ""
    deleted: bool = False
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each."""
    tags: Mapping[str, str] = field(default_factory=dict)
    datasets: Sequence[DatasetUse] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    tracking_uri: str = ""


def to_lineage(run: MlflowRun) -> Imported:
    """The lineage that a run tells."""
    found = Collector("MLflow")
    params = {key: parsed(value) for key, value in run.params.items()}
    found.tree("hyperparameters", params)
    found.numbers("metrics", run.metrics)
    found.text("code_commit", run.tags.get("mlflow.source.git.commit", ""))
    found.text("description", run.tags.get("mlflow.note.content", ""))
    found.text("tracking_uri", run.tracking_uri or f"runs:/{run.run_id}")
    _datasets(found, run.datasets)
    found.conventions({**run.tags, **params})
    # Of the program only its name: a folder says where somebody works.
    program = re.split(r"[\\/]", run.tags.get("mlflow.source.name", ""))[-1]
    environment: dict[str, Any] = {"tracker": "MLflow", **({"program": program} if program else {})}
    found.tree("environment", {**environment, **run.packages})
    if run.status and run.status not in ("FINISHED", "3"):
        found.note(f"the MLflow run {run.run_id} has not finished well: {run.status}")
    if run.deleted:
        found.note(f"the MLflow run {run.run_id} was deleted")
    return found.done()


def _datasets(found: Collector, datasets: Sequence[DatasetUse]) -> None:
    """Every data set by its context; the hash is of those that trained."""
    trained = [item for item in datasets if item.context.lower().startswith("train")] or (
        list(datasets) if len(datasets) == 1 else []
    )
    if len(trained) == 1:
        found.text("data_hash", f"mlflow:{trained[0].digest}")
        found.text("dataset", trained[0].name)
    elif trained:
        lines = "\n".join(sorted(f"{item.name} {item.digest}" for item in trained))
        found.text("data_hash", f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}")
    if datasets:
        splits: dict[str, dict[str, str]] = {}
        for item in datasets:
            name = item.context or item.name
            splits[name if name not in splits else f"{name} ({item.name})"] = {
                "name": item.name,
                "digest": item.digest,
            }
        found.groups("data_splits", splits)


# --- a folder ------------------------------------------------------------------------------------


def is_run_folder(path: Path) -> bool:
    """An experiment has a ``meta.yaml`` too, but none of these folders."""
    parts = ("params", "tags", "metrics")
    return (path / "meta.yaml").is_file() and any((path / name).is_dir() for name in parts)


def find_run_folder(store: Path, run_id: str) -> Path:
    """The folder of a run in a file store (``mlruns``).

    Raises:
        NotFoundError: no experiment has it.
    """
    _check_id(run_id)
    for experiment in sorted(store.iterdir()):
        if is_run_folder(experiment / run_id):
            return experiment / run_id
    raise NotFoundError(f"{store} has no MLflow run {run_id}", hint="'mlflow runs list' shows them.")


def read_folder(folder: Path) -> MlflowRun:
    """A run of a file store (``mlruns/EXPERIMENT/RUN``).

    Raises:
        DataError: a file is damaged, or there are too many.
    """
    meta = read_table(folder / "meta.yaml")
    artifacts = folder / "artifacts"
    packages: dict[str, str] = {}
    for name, path in leaves(artifacts) if artifacts.is_dir() else ():
        if name.rpartition("/")[2] == "requirements.txt":
            packages |= requirements(read_text(path))
    return MlflowRun(
        run_id=str(meta.get("run_id") or meta.get("run_uuid") or folder.name),
        status=str(meta.get("status", "")),
        deleted=meta.get("lifecycle_stage") == "deleted",
        params=_texts(folder / "params"),
        metrics={
            name: last for name, path in _files(folder / "metrics") if (last := _last(path)) is not None
        },
        tags=_texts(folder / "tags"),
        datasets=list(_inputs(folder)),
        packages=packages,
    )


def _files(folder: Path) -> Iterable[tuple[str, Path]]:
    return leaves(folder) if folder.is_dir() else ()


def _texts(folder: Path) -> dict[str, str]:
    return {name: read_text(path).strip() for name, path in _files(folder)}


def _last(path: Path) -> float | None:
    """The value at the last step; a line is ``timestamp value step``."""
    best: tuple[int, int, float] | None = None
    for line in read_text(path).splitlines():
        try:
            stamp, value, *step = line.split()
            found = (int(step[0]) if step else 0, int(stamp), float(value))
        except (ValueError, IndexError) as error:
            raise DataError(f"{path}: {line[:80]!r} is no metric", hint="Is this an MLflow run?") from error
        best = found if best is None or found[:2] >= best[:2] else best
    return None if best is None else best[2]


def _inputs(folder: Path) -> Iterable[DatasetUse]:
    for name, path in _files(folder / "inputs"):
        if not name.endswith("meta.yaml"):
            continue
        link = read_table(path)
        source = str(link.get("source_id", ""))
        meta = folder.parent / "datasets" / source / "meta.yaml"
        if not RUN_ID.fullmatch(source) or not meta.is_file():
            continue
        data, tags = read_table(meta), link.get("tags")
        context = tags.get("mlflow.data.context", "") if isinstance(tags, dict) else ""
        yield DatasetUse(str(data.get("name", "")), str(data.get("digest", "")), str(context))


# --- an SQLite file ------------------------------------------------------------------------------


def read_database(path: Path, run_id: str) -> MlflowRun:
    """A run of an SQL store that is one SQLite file. It is opened to read only.

    Raises:
        InputError: no run was named.
        NotFoundError: it has no such run.
        DataError: it is no MLflow store, or answers too slowly.
    """
    if not run_id:
        raise InputError(f"{path} holds many runs", hint=f"Name one: {path}#RUN_ID.")
    _check_id(run_id)
    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True, timeout=5.0)
        ) as db:
            return _query(db, path, run_id)
    except sqlite3.Error as error:
        raise DataError(
            f"{path} is no MLflow store: {error}", hint="Give the file of sqlite:///FILE."
        ) from error


def _query(db: sqlite3.Connection, path: Path, run_id: str) -> MlflowRun:
    db.execute("PRAGMA trusted_schema = OFF")
    end = time.monotonic() + _DB_SECONDS
    # A view in a hostile file could count forever.
    db.set_progress_handler(lambda: int(time.monotonic() > end), 10_000)

    def rows(sql: str) -> list[Any]:
        return db.execute(f"{sql} LIMIT {_MOST_ROWS}", (run_id,)).fetchall()

    runs = rows("SELECT status, lifecycle_stage FROM runs WHERE run_uuid = ?")
    if not runs:
        raise NotFoundError(f"{path} has no MLflow run {run_id}", hint="'mlflow runs list' shows them.")
    datasets: list[DatasetUse] = []
    tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if {"inputs", "datasets", "input_tags"} <= tables:
        datasets = [
            DatasetUse(str(name), str(digest), str(context or ""))
            for name, digest, context in rows(
                "SELECT d.name, d.digest, t.value FROM inputs i "
                "JOIN datasets d ON d.dataset_uuid = i.source_id "
                "LEFT JOIN input_tags t ON t.input_uuid = i.input_uuid AND t.name = 'mlflow.data.context' "
                "WHERE i.destination_id = ? AND i.source_type = 'DATASET' ORDER BY d.name, d.digest"
            )
        ]
    return MlflowRun(
        run_id=run_id,
        status=str(runs[0][0] or ""),
        deleted=runs[0][1] == "deleted",
        params={
            str(key): str(value) for key, value in rows("SELECT key, value FROM params WHERE run_uuid = ?")
        },
        metrics={
            str(key): value
            for key, value in rows("SELECT key, value FROM latest_metrics WHERE run_uuid = ? AND is_nan = 0")
        },
        tags={str(key): str(value) for key, value in rows("SELECT key, value FROM tags WHERE run_uuid = ?")},
        datasets=datasets,
    )


# --- the answer of a tracking server -------------------------------------------------------------


def from_answer(answer: Any, run_id: str, tracking_uri: str) -> MlflowRun:
    """A run from the answer of ``GET api/2.0/mlflow/runs/get``.

    Raises:
        DataError: it is of another form.
    """
    try:
        run = answer["run"]
        info, data = run["info"], run.get("data") or {}
        inputs = (run.get("inputs") or {}).get("dataset_inputs") or []
        experiment = str(info.get("experiment_id", ""))
        return MlflowRun(
            run_id=run_id,
            status=str(info.get("status", "")),
            deleted=info.get("lifecycle_stage") == "deleted",
            params=_pairs(data.get("params")),
            metrics={str(item["key"]): item["value"] for item in data.get("metrics") or ()},
            tags=_pairs(data.get("tags")),
            datasets=[
                DatasetUse(
                    str(item["dataset"].get("name", "")),
                    str(item["dataset"].get("digest", "")),
                    _pairs(item.get("tags")).get("mlflow.data.context", ""),
                )
                for item in inputs
            ],
            tracking_uri=f"{tracking_uri}/#/experiments/{quote(experiment)}/runs/{run_id}",
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{tracking_uri} did not answer as MLflow does: {error!r}", hint="Is this a tracking server?"
        ) from error


def _pairs(items: Any) -> dict[str, str]:
    return {str(item["key"]): str(item.get("value", "")) for item in items or ()}


def _check_id(run_id: str) -> None:
    if not RUN_ID.fullmatch(run_id):
        raise InputError(f"{run_id[:80]!r} is no MLflow run", hint="A run is named by 32 hexadecimal digits.")
