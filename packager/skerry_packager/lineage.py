"""Where a model comes from: what the packager can see for itself, and what the engineer's file adds.

Seen: the commit of the repository that holds the model, the hashes of the data that it was judged on, the
versions that packed it. Told, by ``--lineage FILE`` (JSON or TOML): everything about the training. Nothing
is guessed: what nobody knows stays empty.
"""

from __future__ import annotations

import math
import platform
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from datetime import date, datetime, time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from skerry_contract.errors import DataError, InputError, ManifestError
from skerry_contract.manifest import Lineage
from skerry_contract.strict_json import loads

if TYPE_CHECKING:
    from .results import PackResult

_MAX_BYTES: Final = 256 * 1024
_KINDS: Final[Mapping[str, type]] = {
    "data_hash": str, "data_splits": dict, "code_commit": str, "hyperparameters": dict, "environment": dict,
    "metrics": dict, "tracking_uri": str,
    "dataset": str, "license": str, "description": str, "base_model": str, "intended_use": str,
    "limitations": str, "language": str, "pipeline_tag": str,
}  # fmt: skip
"""Keys of a lineage file; those from ``dataset`` on are kept beside the lineage's own fields, for the model
card."""
_EXTRA: Final = tuple(_KINDS)[tuple(_KINDS).index("dataset") :]
_PACKAGES: Final = ("numpy", "onnx", "onnxruntime", "skerry")
_GIT_SECONDS: Final = 20


def read_lineage_file(path: Path) -> dict[str, Any]:
    """What the engineer says about the training.

    Raises:
        InputError: no such file, or its name ends in neither ``.json`` nor ``.toml``.
        DataError: it is damaged, has an unknown key or a value of another type.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}", hint="Give the path of a JSON or TOML file."
        ) from error
    if len(data) > _MAX_BYTES:
        raise DataError(
            f"{path} has more than {_MAX_BYTES} bytes", hint="Metrics and parameters only, no data."
        )
    raw = _parsed(path, data)
    if not isinstance(raw, dict):
        raise DataError(f"{path} must hold an object", hint=_KNOWN)
    for key, value in raw.items():
        if key not in _KINDS:
            raise DataError(f"{path}: the key {key[:80]!r} is not known", hint=_KNOWN)
        if not isinstance(value, _KINDS[key]):
            raise DataError(
                f"{path}: {key} must be {'a text' if _KINDS[key] is str else 'a table'}", hint=_KNOWN
            )
    if urlsplit(raw.get("tracking_uri", "")).password:
        raise DataError(
            f"{path}: tracking_uri holds a password", hint="It would be published with the bundle: remove it."
        )
    return {key: _plain(value, f"{path}: {key}") for key, value in raw.items()}


_KNOWN: Final = f"Known keys: {', '.join(_KINDS)}."


def collect_lineage(model: Path, told: Mapping[str, Any], result: PackResult) -> Lineage:
    """The lineage of a bundle; what the engineer told wins over what was seen."""
    seen_splits = {
        name: {"rows": split.rows, "sha256": split.sha256} for name, split in result.splits.items()
    }
    environment = {"packing": packing_environment()}
    if "environment" in told:
        environment["training"] = told["environment"]
    return Lineage(
        data_hash=told.get("data_hash", ""),
        data_splits={**seen_splits, **told.get("data_splits", {})},
        code_commit=told.get("code_commit") or git_commit(model.resolve().parent),
        hyperparameters=told.get("hyperparameters", {}),
        environment=environment,
        metrics=told.get("metrics", {}),
        tracking_uri=told.get("tracking_uri", ""),
        source_model=f"sha256:{result.inspection.sha256}",
        unknown={key: told[key] for key in _EXTRA if key in told},
    )


def packing_environment() -> dict[str, Any]:
    """Versions that can change what is packed."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path) -> str:
    """The commit that is checked out there, with ``-dirty`` if tracked files differ from it.

    Empty outside of a repository, without git, or where git does not trust the folder's owner.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return ""
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit if changes == "" else f"{commit}-dirty"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, stripped; None if it fails. A repository's own monitor program is not started."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "-c", "core.fsmonitor=false", *arguments],
            capture_output=True,
            check=False,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def _parsed(path: Path, data: bytes) -> Any:
    try:
        if path.suffix == ".toml":
            return tomllib.loads(data.decode())
        if path.suffix == ".json":
            return loads(data, max_bytes=_MAX_BYTES, max_depth=24, what=str(path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not TOML: {error}", hint=_KNOWN) from error
    except ManifestError as error:
        raise DataError(error.message, hint=_KNOWN) from error
    raise InputError(f"{path}: a lineage file ends in .json or .toml", hint="Rename it after what it holds.")


def _plain(value: Any, where: str) -> Any:
    """The same in JSON's types: TOML's dates become text."""
    if isinstance(value, dict):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, where) for item in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where} is {value}", hint="A manifest holds finite numbers only: leave it out.")
    return value


GAPS: Final = ("data_hash", "code_commit", "hyperparameters", "metrics", "tracking_uri")
"""Fields that only the engineer, or what trained the model, can fill."""


def lineage_gaps(lineage: Lineage) -> list[str]:
    """The fields that nobody filled."""
    return [name for name in GAPS if not getattr(lineage, name)]


def gaps_of(document: Mapping[str, Any]) -> list[str]:
    """The same of a `lineage_document`."""
    return [name for name in GAPS if not document.get(name)]


def lineage_document(lineage: Lineage) -> dict[str, Any]:
    """A lineage as the log of packaging runs keeps it: what is filled, and what was told beside."""
    found = {item.name: getattr(lineage, item.name) for item in fields(lineage) if item.name != "unknown"}
    return {name: value for name, value in (found | dict(lineage.unknown)).items() if value}
