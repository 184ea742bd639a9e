"""The installer with one planted mistake, to prove that a checker of installs can fail.

``python -m tests.runtime.careless_installer MISTAKE DATA BUNDLE``: none of them changes what an install
leaves behind as long as the power stays on.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
from tests.runtime import kill_installer

from skerry_runtime.agent import files, slots, store
from skerry_runtime.agent.files import fsync_dir
from skerry_runtime.agent.slots import Current, ModelSlots, Pending


def pointer_in_place() -> None:
    """The pointer is overwritten instead of replaced."""

    def write(self: ModelSlots, name: str, pointer: Pending | Current) -> None:
        with (self.state / name).open("wb") as file:
            file.write(msgspec.json.encode(pointer))
            file.flush()
            os.fsync(file.fileno())
        fsync_dir(self.state)

    _replace(ModelSlots, "_write", write)


def no_file_fsync() -> None:
    """Renamed over the old one while the new content is in memory only."""
    _fsync_only(stat.S_ISDIR)


def no_directory_fsync() -> None:
    """The content is safe, and its name is not."""
    _fsync_only(lambda mode: not stat.S_ISDIR(mode))


def blob_not_fsynced() -> None:
    """A download gets its name at once."""
    _replace(store, "fsync_file", lambda path: None)


def generation_not_fsynced() -> None:
    """The pointer may be there before what it points to."""
    _replace(slots, "fsync_dir", lambda folder: None if folder.name == "gens" else fsync_dir(folder))


def links_not_fsynced() -> None:
    """The generation may be there before its files."""
    for module in (slots, files):
        _replace(
            module, "fsync_dir", lambda folder: None if folder.name.endswith(".tmp") else fsync_dir(folder)
        )


def pointer_not_removed_durably() -> None:
    """``pending`` may be back after a power cut."""
    _replace(slots, "remove_durably", lambda path: path.unlink(missing_ok=True))


def none() -> None:
    """No mistake."""


MISTAKES = {
    mistake.__name__: mistake
    for mistake in (
        none,
        pointer_in_place,
        no_file_fsync,
        no_directory_fsync,
        blob_not_fsynced,
        generation_not_fsynced,
        links_not_fsynced,
        pointer_not_removed_durably,
    )
}


def _fsync_only(wanted: Callable[[int], bool]) -> None:
    honest = os.fsync
    _replace(
        os, "fsync", lambda descriptor: honest(descriptor) if wanted(os.fstat(descriptor).st_mode) else None
    )


def _replace(owner: object, name: str, new: Callable[..., None]) -> None:
    assert hasattr(owner, name), "the mistake would plant nothing"
    setattr(owner, name, new)


if __name__ == "__main__":
    MISTAKES[sys.argv[1]]()
    kill_installer.install(Path(sys.argv[2]), Path(sys.argv[3]))
