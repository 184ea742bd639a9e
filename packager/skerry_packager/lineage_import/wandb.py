"""Weights & Biases: the files of a run's folder (``wandb/run-DATE_TIME-ID/files``).

Read: ``wandb-metadata.json``, ``config.yaml``, ``wandb-summary.json``, ``requirements.txt``. A run that was
logged offline and never synchronized has not all of them: the rest is only in its ``.wandb`` file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import DataError

from .files import read_json, read_table, read_text, requirements
from .values import Collector, Imported, is_number

_FOLDER: Final = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-([A-Za-z0-9_-]{1,64})")
_METADATA, _CONFIG, _SUMMARY = "wandb-metadata.json", "config.yaml", "wandb-summary.json"
_NAMES: Final = (_METADATA, _CONFIG, _SUMMARY)
_ENVIRONMENT: Final = ("python", "os", "gpu", "gpu_count", "cpu_count")
"""Of the metadata; names of people, hosts and folders stay where they are."""


def files_of(path: Path) -> Path | None:
    """The ``files`` folder that a path belongs to: a run's folder, that folder itself, or a file in it."""
    # ``wandb/latest-run`` is a link to the run's folder: links that the engineer names are followed.
    folder = path.parent if path.name in _NAMES[::2] else path.resolve()
    for found in (folder / "files", folder):
        if any((found / name).is_file() for name in _NAMES[::2]) or (
            found.is_dir() and _FOLDER.fullmatch(found.parent.name) and found.name == "files"
        ):
            return found
    return None


def read_wandb(files: Path) -> Imported:
    """The lineage that a run's folder tells.

    Raises:
        DataError: a file is damaged, or the folder has none of them.
    """
    have = [name for name in _NAMES if (files / name).is_file()]
    if not have:
        raise DataError(
            f"{files} has none of {', '.join(_NAMES)}",
            hint="A run that was logged offline keeps them in its .wandb file: 'wandb sync' it first, and "
            "download its files.",
        )
    metadata = read_table(files / _METADATA, read_json) if _METADATA in have else {}
    config = _config(files / _CONFIG) if _CONFIG in have else {}
    summary = read_table(files / _SUMMARY, read_json) if _SUMMARY in have else {}
    found = Collector("Weights & Biases")
    git = metadata.get("git")
    if isinstance(git, Mapping):
        found.text("code_commit", git.get("commit"))
    found.tree("hyperparameters", config)
    found.numbers("metrics", {key: value for key, value in summary.items() if not key.startswith("_")})
    found.conventions(config)
    environment = {key: metadata[key] for key in _ENVIRONMENT if metadata.get(key) is not None}
    if isinstance(program := metadata.get("program"), str):
        environment["program"] = re.split(r"[\\/]", program)[-1]
    if (files / "requirements.txt").is_file():
        environment |= requirements(read_text(files / "requirements.txt"))
    found.tree("environment", {"tracker": "Weights & Biases", **environment})
    found.text("tracking_uri", _address(files, metadata))
    if missing := [name for name in _NAMES if name not in have]:
        found.note(f"the run has no {' and no '.join(missing)}")
    if is_number(summary.get("_runtime")) is False and summary:
        found.note("the run's summary has no running time: it may not have finished")
    return found.done()


def _config(path: Path) -> dict[str, Any]:
    """Each parameter is ``{desc, value}``; what W&B keeps for itself is left out."""
    return {
        key: item["value"] if isinstance(item, Mapping) and "value" in item else item
        for key, item in read_table(path).items()
        if key not in ("_wandb", "wandb_version")
    }


def _address(files: Path, metadata: Mapping[str, Any]) -> str:
    """The page of the run, where the files say whose it is; else its name."""
    match = _FOLDER.fullmatch(files.resolve().parent.name)
    run_id = match[1] if match else ""
    entity, project = metadata.get("entity"), metadata.get("project")
    if run_id and isinstance(entity, str) and isinstance(project, str):
        return f"https://wandb.ai/{entity}/{project}/runs/{run_id}"
    return f"wandb:{run_id}" if run_id else ""
