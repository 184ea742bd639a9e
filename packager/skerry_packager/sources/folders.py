"""Files of a folder, and their labels: from subfolders named like classes, or from ``labels.csv``.

Links to folders are not followed, so there are no loops; only regular files are opened, so no pipe hangs.
"""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from skerry_contract.errors import DataError

from .options import SourceOptions
from .samples import encode_labels, spread_evenly, spread_note

LABELS_FILE: Final = "labels.csv"
_MOST_FILES: Final = 1_000_000
_DEEPEST: Final = 16
_LABELS_HINT: Final = (
    "Put the files of each class into a subfolder named like it, or write labels.csv with the columns "
    "file and label."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledFiles:
    """Files in the order of their names, with a label each or without labels."""

    paths: tuple[Path, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and its subfolders, except hidden ones; not in order.

    Raises:
        DataError: too many, too deep, or not readable.
    """
    count = 0
    waiting = [(folder, 0)]
    while waiting:
        here, depth = waiting.pop()
        if depth > _DEEPEST:
            raise DataError(f"{here}: folders are nested too deeply", hint="Give a flat folder.")
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    count += 1
                    if count > _MOST_FILES:
                        raise DataError(f"{folder}: more than {_MOST_FILES:,} files", hint="Give a part.")
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((Path(entry.path), depth + 1))
                    else:
                        yield Path(entry.path)
        except OSError as error:
            raise DataError(
                f"{here} cannot be read: {error.strerror or error}", hint="Check its permissions."
            ) from error


def check_regular(path: Path) -> None:
    """Raises `DataError` for what is no file: a broken or circular link, a pipe, a folder."""
    try:
        mode = path.stat().st_mode
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {reason}", hint="Remove broken links.") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is no regular file", hint="Give plain files.")


def labelled_files(folder: Path, suffixes: Sequence[str], options: SourceOptions) -> LabelledFiles:
    """The files with one of the suffixes, at most `options.max_rows` of them, evenly spread.

    Raises:
        DataError: no such file, labels that are incomplete or contradict the folder.
    """
    found = sorted(
        (path for path in files_below(folder) if path.suffix.lower() in suffixes),
        key=lambda path: path.relative_to(folder).parts,
    )
    if not found:
        raise DataError(
            f"{folder} has no file of the kind {', '.join(suffixes)}", hint="Check the path of the folder."
        )
    notes: tuple[str, ...] = ()
    table = folder / LABELS_FILE
    words: list[str] | None
    if os.path.lexists(table):
        by_file = _read_labels(table, found)
        words = [by_file[path] for path in found if path in by_file]
        left_out = len(found) - len(words)
        found = [path for path in found if path in by_file]
        if left_out:
            notes = (f"{folder}: {left_out} files that {LABELS_FILE} does not name were left out",)
    else:
        words = _folder_labels(folder, found)
    labels, names = (None, ()) if words is None else encode_labels(words, options.classes, str(folder))
    if labels is not None and not names and not os.path.lexists(table):
        notes += (_note_of_numbers(folder, labels),)
    keep = spread_evenly(range(len(found)), options.max_rows)
    if len(keep) < len(found):
        notes += (spread_note(str(folder), len(keep), len(found)),)
    return LabelledFiles(
        paths=tuple(found[place] for place in keep),
        labels=None if labels is None else labels[keep],
        class_names=names,
        notes=notes,
    )


def _folder_labels(folder: Path, found: Sequence[Path]) -> list[str] | None:
    """The name of the first subfolder of each file; None if there are none, or only one."""
    parents = [path.relative_to(folder).parts[:-1] for path in found]
    if not any(parents) or (all(parents) and len({parent[0] for parent in parents}) == 1):
        return None
    loose = [path for path, parent in zip(found, parents, strict=True) if not parent]
    if loose:
        raise DataError(
            f"{folder}: some files are in subfolders (classes), but {loose[0].name} is in none",
            hint=_LABELS_HINT,
        )
    return [parent[0] for parent in parents]


def _note_of_numbers(folder: Path, labels: np.ndarray) -> str:
    """How subfolders that are named by numbers were understood."""
    numbers = np.unique(labels)
    if np.array_equal(numbers, np.arange(len(numbers))):
        return f"{folder}: the subfolders 0 to {len(numbers) - 1} are the numbers of the classes"
    shown = ", ".join(f"{number:g}" for number in numbers[:3]) + (", …" if len(numbers) > 3 else "")
    return (
        f"{folder}: the subfolders {shown} are taken for the numbers of classes, counted from 0, or for"
        " values; if they are names, give all of them in the order of the output by --labels"
    )


def _read_labels(table: Path, found: Sequence[Path]) -> dict[Path, str]:
    """File -> label as written. Raises `DataError` naming the line."""
    check_regular(table)
    known = set(found)
    labels: dict[Path, str] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if not row or (reader.line_num == 1 and [cell.strip() for cell in row] == ["file", "label"]):
                    continue
                if len(row) != 2:
                    raise DataError(
                        f"{table}, line {reader.line_num}: {len(row)} columns instead of file and label",
                        hint=_LABELS_HINT,
                    )
                path = table.parent / row[0].strip()
                if path not in known or path in labels:
                    why = "is named twice" if path in labels else "is not in the folder"
                    raise DataError(
                        f"{table}, line {reader.line_num}: {row[0].strip()!r} {why}",
                        hint="Paths in it are relative to its folder.",
                    )
                labels[path] = row[1]
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{table} cannot be read: {error}", hint=_LABELS_HINT) from error
    if not labels:
        raise DataError(f"{table} names no file", hint=_LABELS_HINT)
    return labels
