"""DVC: ``dvc.lock`` with its stages, ``*.dvc`` of tracked data, ``params.yaml``, metrics, and git's commit.

The data's hash is what DVC recorded: ``dvc:md5:…`` of one data set, or the SHA-256 over the sorted list of
all data that the stages depend on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import DataError, NotFoundError

from ..lineage import git_commit
from .files import read_json, read_table
from .values import Collector, Imported

_CODE: Final = frozenset({
    ".py", ".ipynb", ".r", ".sh", ".jl", ".c", ".cc", ".cpp", ".h", ".rs", ".toml", ".yaml", ".yml", ".cfg",
})  # fmt: skip
"""Dependencies that are no data; git's commit covers them."""
_USUAL_METRICS: Final = ("metrics.json", "metrics.yaml", "dvclive/metrics.json", "eval/metrics.json")
_HASHES: Final = ("md5", "etag", "checksum")


def is_dvc(path: Path) -> bool:
    if path.is_dir():
        return (path / "dvc.lock").is_file() or (path / ".dvc").is_dir() or any(path.glob("*.dvc"))
    return path.name == "dvc.lock" or (path.suffix == ".dvc" and path.is_file())


def read_dvc(path: Path, stage: str = "") -> Imported:
    """The lineage that a project's files tell.

    Args:
        path: the project's folder, its ``dvc.lock``, or one ``.dvc`` file.
        stage: only this stage of ``dvc.lock``; all if empty.

    Raises:
        DataError: a file is damaged.
        NotFoundError: there is no such stage.
    """
    folder = path if path.is_dir() else path.parent
    found = Collector("DVC")
    stages = _stages(folder, stage) if path.suffix != ".dvc" else {}
    tracked = [path] if path.suffix == ".dvc" and path.is_file() else sorted(folder.glob("*.dvc"))
    data = _data_of(stages) or dict(item for file in tracked if file.is_file() for item in _outputs(file))
    if len(data) == 1:
        found.text("data_hash", f"dvc:{next(iter(data.values()))}")
        found.text("dataset", next(iter(data)))
    elif data:
        lines = "\n".join(f"{name} {digest}" for name, digest in sorted(data.items()))
        found.text("data_hash", f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}")
    if data:
        found.groups("data_splits", {name: {"digest": digest} for name, digest in data.items()})
    found.text("code_commit", git_commit(folder.resolve()))
    used = {key: value for item in stages.values() for key, value in _used_params(item)}
    if not used and (folder / "params.yaml").is_file():
        used = read_table(folder / "params.yaml")
    found.tree("hyperparameters", used)
    for name, metrics in _metrics(folder, stages):
        found.numbers("metrics", metrics if name in _USUAL_METRICS else {name: metrics})
    found.tree("environment", {"tracker": "DVC", **({"stage": stage} if stage else {})})
    if not data:
        found.note("DVC tracks no data here: the data's hash is not known")
    return found.done()


def _stages(folder: Path, wanted: str) -> dict[str, Mapping[str, Any]]:
    path = folder / "dvc.lock"
    if not path.is_file():
        return {}
    lock = read_table(path)
    # Schema 1.0 had the stages at the top.
    stages = lock.get("stages") if "schema" in lock else lock
    if not isinstance(stages, Mapping) or not all(isinstance(item, Mapping) for item in stages.values()):
        raise DataError(f"{path} has no table of stages", hint="'dvc repro' writes it.")
    if wanted and wanted not in stages:
        raise NotFoundError(
            f"{path} has no stage {wanted[:80]!r}", hint=f"It has {', '.join(map(str, stages))[:300]}."
        )
    return {str(name): item for name, item in stages.items() if not wanted or name == wanted}


def _data_of(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What the stages read, but code and what another of them has made."""
    made = {name for item in stages.values() for name, _ in _entries(item.get("outs"))}
    return {
        name: digest
        for item in stages.values()
        for name, digest in _entries(item.get("deps"))
        if name not in made and Path(name).suffix.lower() not in _CODE
    }


def _entries(items: object) -> Iterable[tuple[str, str]]:
    for item in items if isinstance(items, Sequence) and not isinstance(items, str) else ():
        if not isinstance(item, Mapping) or not isinstance(item.get("path"), str):
            continue
        kind = next((name for name in _HASHES if isinstance(item.get(name), str)), "")
        if kind:
            yield item["path"], f"{kind}:{item[kind]}"


def _outputs(file: Path) -> Iterable[tuple[str, str]]:
    return _entries(read_table(file).get("outs"))


def _used_params(stage: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """The parameters that a stage ran with, over all its files."""
    files = stage.get("params")
    for values in files.values() if isinstance(files, Mapping) else ():
        if isinstance(values, Mapping):
            yield from ((str(key), value) for key, value in values.items())


def _metrics(folder: Path, stages: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, dict[str, Any]]]:
    """The metrics that ``dvc.yaml`` declares, else those of customary names; none outside of the folder."""
    declared = list(_declared(folder, stages))
    root = folder.resolve()
    for name in dict.fromkeys(declared or _USUAL_METRICS):
        path = folder / name
        if not path.is_file() or not path.resolve().is_relative_to(root):
            continue
        if path.suffix in (".yaml", ".yml"):
            yield name, read_table(path)
        elif path.suffix == ".json":
            yield name, read_table(path, read_json)


def _declared(folder: Path, stages: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    path = folder / "dvc.yaml"
    if not path.is_file():
        return
    project = read_table(path)
    all_stages = project.get("stages")
    lists = [project.get("metrics")]
    for name, item in all_stages.items() if isinstance(all_stages, Mapping) else ():
        if isinstance(item, Mapping) and (not stages or name in stages):
            lists.append(item.get("metrics"))
    for items in lists:
        for item in items if isinstance(items, list) else ():
            # Either a name, or a table of names with their options.
            yield from map(str, item) if isinstance(item, Mapping) else [str(item)]
