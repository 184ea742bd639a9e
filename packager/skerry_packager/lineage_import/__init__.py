"""What ``skerry pack --lineage`` reads: a file of our own, or a run that a tracker knows.

========================================  =======================================================
``run.json``, ``run.toml``                our own keys, see `skerry_packager.lineage`
``mlruns/EXPERIMENT/RUN/``                an MLflow run's folder
``mlruns#RUN``                            a run in a folder of MLflow experiments
``mlflow.db#RUN``                         a run in MLflow's SQLite file
``mlflow+https://HOST/#RUN``              a run of an MLflow tracking server
``wandb/run-DATE_TIME-ID``                a Weights & Biases run's folder
``.``, ``dvc.lock[#STAGE]``, ``x.dvc``    a DVC project
``run.json``, ``runs.csv[#RUN]``          an export of Neptune
========================================  =======================================================

Nothing is executed, no link is followed, only what is named is read, and the network is used for an
``mlflow+http(s)`` reference alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from skerry_contract.errors import InputError

from ..lineage import read_lineage_file
from .files import read_json
from .values import Imported

__all__ = ["Imported", "read_lineage"]

_SQLITE: Final = b"SQLite format 3\0"
_KNOWN: Final = (
    "Give a JSON or TOML file, a run's folder of MLflow or Weights & Biases, mlflow.db#RUN_ID, "
    "mlflow+https://HOST/#RUN_ID, a DVC project, or an export of Neptune."
)


def read_lineage(reference: str) -> Imported:
    """The lineage that a reference names.

    Raises:
        InputError: no such file, or nothing that is known.
        DataError: a file is damaged or too large, or holds something else.
        NotFoundError: there is no such run.
        AccessError, TransferError: from an MLflow server.
    """
    # Imported where needed: the readers of files need nothing of the network, nor of YAML.
    if "://" in reference and not reference.startswith("sqlite:///"):
        from .mlflow_server import is_server, read_server

        if not is_server(reference):
            raise InputError(f"{reference[:200]!r} is no lineage that can be read", hint=_KNOWN)
        from .mlflow import to_lineage

        return to_lineage(read_server(reference))
    path, name = _split(reference.removeprefix("sqlite:///"))
    if path.is_dir():
        return _from_folder(path, name)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder", hint=_KNOWN)
    return _from_file(path, name)


def _split(reference: str) -> tuple[Path, str]:
    """Path and the run in it; a path that exists may hold a ``#``."""
    if Path(reference).exists():
        return Path(reference), ""
    before, mark, after = reference.rpartition("#")
    return (Path(before), after) if mark else (Path(reference), "")


def _from_folder(path: Path, name: str) -> Imported:
    from . import dvc, mlflow, wandb

    if name and any(mlflow.is_run_folder(folder / name) for folder in path.iterdir()):
        return mlflow.to_lineage(mlflow.read_folder(mlflow.find_run_folder(path, name)))
    if mlflow.is_run_folder(path):
        return mlflow.to_lineage(mlflow.read_folder(path))
    if files := wandb.files_of(path):
        return wandb.read_wandb(files)
    if dvc.is_dvc(path):
        return dvc.read_dvc(path, name)
    if name:
        mlflow.find_run_folder(path, name)
    raise InputError(f"{path} holds no training run that is known", hint=_KNOWN)


def _from_file(path: Path, name: str) -> Imported:
    from . import dvc, mlflow, neptune, wandb

    if files := wandb.files_of(path):
        return wandb.read_wandb(files)
    if dvc.is_dvc(path):
        return dvc.read_dvc(path, name)
    if path.suffix == ".csv":
        return neptune.read_neptune(path, name)
    if path.suffix == ".json" and neptune.looks_like_neptune(read_json(path)):
        return neptune.read_neptune(path, name)
    if path.suffix in (".json", ".toml"):
        return Imported(told=read_lineage_file(path), source="file")
    with path.open("rb") as file:
        if file.read(len(_SQLITE)) == _SQLITE:
            return mlflow.to_lineage(mlflow.read_database(path, name))
    raise InputError(f"{path} is no lineage that can be read", hint=_KNOWN)
