"""What people and scripts read: tables, progress, errors, JSON.

Results go to standard output, progress and complaints to standard error. Every text that came from a
model, a bundle or a server is shown without control characters, so that it cannot steer the terminal.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from skerry_contract.limits import KIB, MIB

if TYPE_CHECKING:
    from rich.console import Console

_WIDE: Final = 10_000
_PIPED: Final = 100
"""Columns of a table where there is no terminal and nobody said COLUMNS."""
_LEAST_TEXT: Final = 8
"""A column of text is never folded to less."""
_COLOURS: Final = {
    "green": "ok online confirmed completed pass packed done",
    "cyan": "running info",
    "yellow": "hold paused warn lost",
    "red": "failed fail halted aborted rolled_back rejected crash nan shape accuracy slow major critical",
    "dim": "skipped",
}
_STYLES: Final = {word: colour for colour, words in _COLOURS.items() for word in words.split()}
"""Colours of the words that tables use for states and verdicts."""

Step = Callable[[str, int, int], None]
"""Called as ``step(what is being done, steps done, steps in all)``."""


def stdout() -> Console:
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_piped_width())


def width() -> int:
    """How many characters a line of a table may have."""
    return stdout().width


def stderr() -> Console:
    from rich.console import Console

    if sys.stderr.isatty():
        return Console(stderr=True, highlight=False)
    return Console(stderr=True, highlight=False, width=_WIDE)


def clean(value: object) -> str:
    """Text without control, format or surrogate characters, each replaced by ``�``.

    >>> clean("a" + chr(27) + "[31mb")
    'a�[31mb'
    """
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in str(value))


def say(text: str = "", *, style: str = "") -> None:
    """A line of the result."""
    from rich.text import Text

    stdout().print(Text("\n".join(map(clean, text.split("\n"))), style=style), soft_wrap=True)


def warn(text: str) -> None:
    """A line that matters although the command goes on."""
    from rich.text import Text

    stderr().print(Text(f"warning: {clean(text)}", style="yellow"), soft_wrap=True)


def print_json(value: Any) -> None:
    """The result of ``--json``: one document on standard output."""
    print(
        json.dumps(
            value, indent=2, ensure_ascii=not sys.stdout.encoding.lower().startswith("utf"), default=list
        )
    )


def print_error(message: str, hint: str = "", lines: Sequence[str] = ()) -> None:
    """What was wrong, and what to do next; ``lines`` say both in their place."""
    from rich.text import Text

    console = stderr()
    first, *others = lines or (message,)
    console.print(Text.assemble(("error: ", "bold red"), clean(first)), soft_wrap=True)
    for line in others:
        console.print(Text(clean(line), style="cyan" if line.startswith("→") else ""), soft_wrap=True)
    if hint and not lines:
        console.print(Text(f"→ {clean(hint)}", style="cyan"), soft_wrap=True)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Collection[str] = (),
    whole: Collection[str] = (),
) -> None:
    """A table. Empty cells are ``-``.

    Args:
        columns: their titles.
        rows: a cell for each column.
        right: columns that hold numbers.
        whole: columns that hold names, times and states. They are never broken, nor are numbers; other texts
            fold where the line is narrow.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    least = 0
    cells = [["-" if cell is None or cell == "" else clean(cell) for cell in row] for row in rows]
    for index, column in enumerate(columns):
        unbroken = column in right or column in whole
        grid.add_column(
            column, justify="right" if column in right else "left", no_wrap=unbroken, overflow="fold"
        )
        longest = max(map(len, [column, *(row[index] for row in cells)]))
        least += 2 + (longest if unbroken else min(longest, _LEAST_TEXT))
    for row in cells:
        grid.add_row(*(Text(cell, style=_STYLES.get(cell.lower(), "")) for cell in row))
    console = stdout()
    # rich would cut what does not fit: a line that is too long is better than half a name.
    console.width = max(console.width, least)
    if console.is_terminal:
        console.print(grid)
        return
    with console.capture() as captured:
        console.print(grid)
    for line in captured.get().splitlines():
        print(line.rstrip())


def facts(rows: Iterable[tuple[str, object]]) -> None:
    """Names and values below each other; what is empty is left out."""
    shown = [(name, clean(value)) for name, value in rows if value not in (None, "", ())]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        say(f"{name:<{width}}  {value}")


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Step]:
    """A bar on a terminal, a line for each new step elsewhere, nothing if `quiet`."""
    if quiet:
        yield lambda what, done, total: None
        return
    console = stderr()
    if not console.is_terminal:
        yield _line_by_line(console)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def step(what: str, done: int, total: int) -> None:
            bar.update(task, description=clean(what).replace("[", "\\["), completed=done, total=total or None)

        yield step


@contextmanager
def bytes_progress(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes on a terminal, nothing elsewhere."""
    console = stderr()
    if quiet or not console.is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(clean(what).replace("[", "\\["), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def short_digest(digest: object) -> str:
    """The first 12 hexadecimal digits: enough to tell the bundles of a fleet apart.

    >>> short_digest("sha256:" + "ab" * 32), short_digest(None)
    ('abababababab', '')
    """
    return str(digest or "").removeprefix("sha256:")[:12]


def size(count: int | None) -> str:
    """Bytes for people.

    >>> size(1536), size(0), size(None)
    ('1.5 KiB', '0 B', '')
    """
    if count is None:
        return ""
    if count >= MIB:
        return f"{count / MIB:.1f} MiB"
    return f"{count / KIB:.1f} KiB" if count >= KIB else f"{count} B"


def time_of(milliseconds: int | float | None) -> str:
    """A wall-clock time in UTC for people; empty if unknown.

    >>> time_of(0), time_of(1_700_000_000_000)
    ('', '2023-11-14 22:13:20Z')
    """
    from datetime import UTC, datetime

    if not milliseconds:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _piped_width() -> int:
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and 0 < int(columns) <= _WIDE else _PIPED


def _line_by_line(console: Console) -> Step:
    last = ""

    def step(what: str, done: int, total: int) -> None:
        nonlocal last
        if what != last:
            last = what
            console.print(f"[{done}/{total}] {clean(what)}", markup=False)

    return step
