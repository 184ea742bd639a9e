"""The data folder belongs to the daemon's user alone, and its layout is one that this version knows.

Both are looked at before anything in it is read, so a folder that a newer version wrote is left as it is.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from skerry_contract.errors import StorageError

from .files import storage_errors, write_durably

FORMAT: Final = 1
"""Names and meaning of all files in the data folder. The outbox has a number of its own."""


def check_owner(folder: Path) -> None:
    """Nobody else may plant files here.

    Raises:
        StorageError: it belongs to another user, or everybody may write to it.
    """
    with storage_errors(f"looking at {folder}"):
        status = folder.stat()
    if status.st_uid != os.geteuid():
        raise StorageError(
            f"{folder} belongs to the user {status.st_uid}, the daemon runs as {os.geteuid()}",
            hint="Start the daemon as that user, or give it a data_dir of its own.",
        )
    if status.st_mode & stat.S_IWOTH:
        raise StorageError(
            f"everybody may write to {folder}", hint=f"Run: chmod 700 {folder}, and look at what is in it."
        )


def check_format(file: Path) -> None:
    """Note the format where there is none yet; afterwards the folder is of this version.

    Raises:
        StorageError: a newer version wrote it. Nothing was changed.
    """
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    found = int(text) if text.isdecimal() and len(text) < 10 else 0
    if found > FORMAT:
        raise StorageError(
            f"{file.parent} was written by a newer version (format {found}; this one knows {FORMAT})",
            hint="Run the newer version again, or give this one a data_dir of its own.",
        )
    if found < FORMAT:
        # Serving goes first: a disk that does not take the note takes no other layout either.
        with contextlib.suppress(StorageError):
            write_durably(file, b"%d\n" % FORMAT)
