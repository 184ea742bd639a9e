"""Neptune: metadata of a run that was exported as JSON (nested, or with ``a/b`` names) or as a CSV table.

Neptune's names are paths: ``parameters/…`` are hyperparameters, numbers elsewhere are metrics, ``sys/…`` says
which run it is, ``source_code/git`` which commit.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import DataError, InputError, NotFoundError

from .files import read_json, read_text
from .values import Collector, Imported, flatten, is_number, parsed

_PARAMETERS: Final = ("parameters/", "params/", "hyperparameters/", "config/", "training/hyperparams/")
_NEVER: Final = ("sys/", "monitoring/", "source_code/")
_COMMIT: Final = re.compile(r"source_code/git(?:/|_)?(?:commit/?_?)?(?:id)?|source_code/git/.*commit.*")
_HASH: Final = re.compile(r"(?:data|datasets?|artifacts?)/(?:(.+)/)?(?:hash|digest|sha256|md5)")
_PACKAGE: Final = "environment/"


def looks_like_neptune(found: Any) -> bool:
    """Whether parsed JSON is an export of Neptune."""
    return isinstance(found, Mapping) and any(key == "sys" or str(key).startswith("sys/") for key in found)


def read_neptune(path: Path, run_id: str = "") -> Imported:
    """The lineage that an exported file tells.

    Args:
        path: ``.json`` or ``.csv``.
        run_id: which run of a table; may be empty where there is only one.

    Raises:
        DataError: the file is damaged, or is no export of Neptune.
        InputError: the table holds several runs and none was named.
        NotFoundError: it has no such run.
    """
    values = _row(path, run_id) if path.suffix == ".csv" else dict(flatten(_tree(path), "/"))
    found = Collector("Neptune")
    parameters, metrics = {}, {}
    for key, value in values.items():
        prefix = next((prefix for prefix in _PARAMETERS if key.startswith(prefix)), None)
        if prefix is not None:
            parameters[key.removeprefix(prefix)] = value
        elif not key.startswith((*_NEVER, _PACKAGE)) and is_number(value):
            metrics[key.removeprefix("metrics/")] = value
    found.tree("hyperparameters", parameters)
    found.numbers("metrics", metrics)
    commits = [values[key] for key in sorted(values) if _is_commit(key, values[key])]
    found.text("code_commit", commits[0] if commits else None)
    hashes = {match[1] or "data": value for key, value in values.items() if (match := _HASH.fullmatch(key))}
    found.groups("data_splits", {name: {"digest": value} for name, value in hashes.items()})
    if len(hashes) == 1 or "train" in hashes:
        found.text("data_hash", hashes.get("train", next(iter(hashes.values()))))
    found.conventions(parameters)
    environment = {
        key.removeprefix(_PACKAGE): value for key, value in values.items() if key.startswith(_PACKAGE)
    }
    found.tree("environment", {"tracker": "Neptune", **environment})
    found.text("description", values.get("sys/description"))
    project, run = values.get("sys/project") or values.get("project"), values.get("sys/id")
    if isinstance(run, str):
        where = f"{project}/" if isinstance(project, str) else ""
        found.text("tracking_uri", f"neptune:{where}{run}")
    if values.get("sys/failed") in (True, "True", "true"):
        found.note(f"the Neptune run {run} has failed")
    return found.done()


def _is_commit(key: str, value: Any) -> bool:
    if not isinstance(value, str) or not _COMMIT.fullmatch(key):
        return False
    return re.fullmatch(r"[0-9a-f]{7,64}", value) is not None


def _tree(path: Path) -> Mapping[str, Any]:
    found = read_json(path)
    if not isinstance(found, Mapping):
        raise DataError(f"{path} must hold an object", hint="Export one run with its metadata.")
    return found


def _row(path: Path, run_id: str) -> dict[str, Any]:
    """One line of a table with a column for each name."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"{path} is not CSV: {error}", hint="Export the table of runs again.") from error
    if not rows or not any(str(name).startswith("sys/") for name in rows[0]):
        raise DataError(f"{path} has no column such as sys/id", hint="Export the table of runs from Neptune.")
    if run_id:
        rows = [row for row in rows if row.get("sys/id") == run_id]
        if not rows:
            raise NotFoundError(f"{path} has no run {run_id[:80]!r}", hint="The column sys/id names them.")
    if len(rows) > 1:
        raise InputError(f"{path} holds {len(rows)} runs", hint=f"Name one: {path}#RUN_ID.")
    return {
        name: parsed(value)
        for name, value in rows[0].items()
        if isinstance(name, str) and isinstance(value, str) and value
    }
