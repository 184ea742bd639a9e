"""``skerry runs``."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from skerry_contract.errors import StorageError

from .. import console
from ..results import FP32, no_disagreement
from .options import duration, json_option

_ROOMY: Final = 96
"""Characters of a line that has room for every column."""
_DISPENSABLE: Final = ("ratio", "p50 here")
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}(?:T[\d:]+Z?)?")

run_log_option = click.option(
    "--run-log",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("skerry-runs.db"),
    show_default=True,
    help="The log of packaging runs, an SQLite file.",
)


def since(value: str) -> str:
    """A time in the log's form, from a date (``2026-01-31``) or an age (``90m``, ``12h``, ``7d``)."""
    text = str(value)
    if _DATE.fullmatch(text):
        try:
            datetime.fromisoformat(text)
        except ValueError:
            raise click.BadParameter(f"{text!r} is no date.") from None
        return text
    try:
        age = timedelta(seconds=duration(text))
        return (datetime.now(UTC) - age).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (click.BadParameter, OverflowError):
        raise click.BadParameter(f"{text!r} is no time; write 2026-01-31, 12h or 7d.") from None


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--name``, ``--failed`` and ``--since``."""
    options = (
        click.option("--name", default="", help="Only runs of this model."),
        click.option("--failed", is_flag=True, help="Only runs that failed."),
        click.option(
            "--since", type=since, metavar="TIME",
            help="Only runs that began then or later: a UTC date such as 2026-01-31, or an age such as 7d.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def runs() -> None:
    """Look into the log of packaging runs.

    'skerry pack' writes down every variant that it tried, what each cost and kept, and why it won or lost.

    \b
    Example:
      skerry runs list --since 7d
      skerry runs show 3 --html report.html
      skerry runs compare 3 4
    """


@runs.command("list")
@filters
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="The latest so many."
)
@run_log_option
@json_option
def list_runs(name: str, failed: bool, since: str | None, limit: int, run_log: Path, as_json: bool) -> None:
    """List the latest runs, newest first.

    \b
    Example:
      skerry runs list --name digits --limit 5
      skerry runs list --failed --since 7d
    """
    from ..runlog import RunLog

    found = RunLog(run_log, create=False).runs(name=name, failed=failed, since=since or "", limit=limit)
    if as_json:
        console.print_json({"runs": found})
        return
    console.table(
        ("run", "started", "model", "outcome", "chosen", "bundle", "error"),
        (
            (
                run["id"],
                run["started"],
                f"{run['name']} {run['version']}",
                run["outcome"],
                ", ".join(run["chosen"] or ()),
                console.size(run["bundle_bytes"]),
                run["error_code"],
            )
            for run in found
        ),
        right=("run",),
        whole=("started", "outcome", "bundle"),
    )


@runs.command()
@click.argument("number", type=click.IntRange(min=1), metavar="RUN")
@click.option(
    "--html",
    "page",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the report as one HTML page that works offline.",
)
@run_log_option
@json_option
def show(number: int, page: Path | None, run_log: Path, as_json: bool) -> None:
    """Show one run with every variant that it tried.

    \b
    Example:
      skerry runs show 3
      skerry runs show 3 --html report.html
    """
    from ..runlog import RunLog

    run = RunLog(run_log, create=False).run(number)
    if page is not None:
        write_report(run, page)
    if as_json:
        console.print_json(run)
        return
    console.facts(
        [
            ("run", f"{run['id']}, {run['started']}, {run['seconds']:.1f} s"),
            ("model", f"{run['name']} {run['version']}, release {run['release']}"),
            ("source", f"{run['source_file']}  {run['source_digest'] or ''}"),
            ("outcome", run["outcome"] + (f" ({run['error_code']}): {run['error']}" if run["error"] else "")),
            ("objective", f"{run['objective']}, losing at most {run['max_drop'] * 100:g} points"),
            ("profiles", ", ".join(run["profiles"] or ())),
            ("bundle", run["bundle"]),
            ("digest", run["bundle_digest"]),
            ("notes", "; ".join(run["notes"] or ())),
        ]
    )
    show_variants(run["variants"])
    show_drawings(run)
    if page is not None:
        console.say(f"report written to {page}", style="dim")


@runs.command()
@click.argument("numbers", type=click.IntRange(min=1), nargs=-1, required=True, metavar="RUN RUN [RUN]…")
@click.option("--all", "everything", is_flag=True, help="Show what is equal in all of them, too.")
@run_log_option
@json_option
def compare(numbers: tuple[int, ...], everything: bool, run_log: Path, as_json: bool) -> None:
    """Compare runs side by side: what went in, what came out.

    Every run is compared with the first one. An input that differs is marked '*'; an outcome is marked '+'
    where it is better and '!' where it is worse, by more than measurements vary; '~' is within that.

    \b
    Example:
      skerry runs compare 3 4
      skerry runs compare 3 4 7 --all
    """
    from ..runlog import RunLog
    from ..runlog_compare import compare_runs

    if not 2 <= len(set(numbers)) == len(numbers) <= 8:
        raise click.UsageError("Name 2 to 8 different runs.")
    log = RunLog(run_log, create=False)
    rows = compare_runs([log.run(number) for number in numbers])
    shown = [row for row in rows if everything or len(set(row.changes)) > 1]
    if as_json:
        console.print_json(
            {
                "runs": numbers,
                "rows": [
                    {
                        "group": row.group, "what": row.what, "values": row.values,
                        "changes": row.changes, "significant": row.counts,
                    }
                    for row in shown
                ],
            }
        )  # fmt: skip
        return
    if not shown:
        console.say("no difference")
        return
    console.table(
        ("of", "what", *(f"run {number}" for number in numbers)),
        (
            (
                row.group,
                row.what,
                *(
                    f"{_SIGNS[change]}{_shown(row.what, value)}"
                    for value, change in zip(row.values, row.changes, strict=True)
                ),
            )
            for row in shown
        ),
    )
    console.say("* differs  + better  ! worse  ~ differs no more than measurements do", style="dim")


_SIGNS: Final = {"same": "", "changed": "* ", "better": "+ ", "worse": "! ", "noise": "~ "}
_FORMS: Final[Mapping[str, Callable[[Any], str]]] = {
    "size": console.size,
    "bundle bytes": console.size,
    "RAM here": console.size,
    "latency vs fp32": "x{:.2f}".format,
    "loss": "{:+.2%}".format,
    "seconds": "{:.1f} s".format,
}


def _shown(what: str, value: Any) -> str:
    if value is None:
        return "-"
    if what in _FORMS:
        return _FORMS[what](value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@runs.command()
@filters
@click.option("--limit", type=click.IntRange(1), default=1_000_000, help="The latest so many.")
@click.option(
    "--format", "form", type=click.Choice(("jsonl", "csv")), default="jsonl", show_default=True,
    help="JSON lines hold everything, one run a line; CSV holds one variant a line.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Instead of printing."
)
@run_log_option
@json_option
def export(
    name: str,
    failed: bool,
    since: str | None,
    limit: int,
    form: str,
    out: Path | None,
    run_log: Path,
    as_json: bool,
) -> None:
    """Write the log for other tools, newest run first.

    \b
    Example:
      skerry runs export --format csv --out runs.csv
    """
    from ..runlog import RunLog

    log = RunLog(run_log, create=False)
    found = (log.run(run["id"]) for run in log.runs(name=name, failed=failed, since=since or "", limit=limit))
    if as_json:
        lines: Iterable[str] = [json.dumps(list(found), indent=2) + "\n"]
    else:
        lines = _json_lines(found) if form == "jsonl" else _csv_lines(found)
    if out is None:
        sys.stdout.writelines(lines)
        return
    try:
        with out.open("w", encoding="utf-8", newline="") as file:
            file.writelines(lines)
    except OSError as error:
        raise StorageError(
            f"cannot write {out}: {error.strerror or error}", hint="Choose another --out."
        ) from error


def _json_lines(found: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for run in found:
        yield json.dumps(run) + "\n"


def _csv_lines(found: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    from ..runlog_columns import RUNS, VARIANTS

    columns = [name for name in VARIANTS if name != "run"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*(f"run.{name}" for name in RUNS), *columns])
    for run in found:
        for variant in run["variants"] or [{}]:
            values = [*(run.get(name) for name in RUNS), *(variant.get(name) for name in columns)]
            writer.writerow([_cell(value) for value in values])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula is marked as text."""
    if isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True)
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def write_report(run: Mapping[str, Any], page: Path) -> None:
    """The report of a run, from a document of `skerry_packager.runlog`, as one HTML file.

    Raises:
        StorageError: it cannot be written.
    """
    from ..report import render_html

    try:
        page.write_text(render_html(run), encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"cannot write the report {page}: {error.strerror or error}", hint="Choose another file."
        ) from error


def show_drawings(run: Mapping[str, Any]) -> None:
    """The Pareto plot, the losses and the budgets of a run, from a document of `skerry_packager.runlog`."""
    from ..report.text import glyphs_for_stdout, render_text

    lines = render_text(run, console.width(), glyphs_for_stdout())
    if lines:
        console.say()
    for line in lines:
        console.say(line, style="red" if "OVER" in line else "yellow" if "may be over" in line else "")


def show_variants(variants: list[Mapping[str, Any]] | list[dict[str, Any]]) -> None:
    """The table of every variant tried, from rows as `skerry_packager.runlog.variant_row` makes them."""
    if not variants:
        return
    columns: list[tuple[str, Callable[[Mapping[str, Any]], object]]] = [
        ("variant", lambda row: row["name"]),
        ("size", lambda row: console.size(row["size"])),
        ("ratio", lambda row: _number(row["size_ratio"], "{:.2f}")),
        ("search loss", lambda row: _number(row["drop"], "{:+.2%}")),
        ("95% bound", _bound),
        ("p50 here", lambda row: _milliseconds(row["latency_p50_us"])),
        ("vs fp32", lambda row: _number(row["latency_ratio"], "x{:.2f}")),
        ("RAM here", lambda row: console.size(row["ram_measured_bytes"])),
        ("verdict", lambda row: row["verdict"]),
    ]
    if console.width() < _ROOMY:
        columns = [column for column in columns if column[0] not in _DISPENSABLE]
    titles = [title for title, _ in columns]
    console.table(
        titles,
        ([cell(row) for _, cell in columns] for row in variants),
        right=set(titles) - {"variant", "verdict"},
        whole=("variant", "verdict"),
    )
    console.say()
    for row in variants:
        console.say(f"{row['name']}: {'; '.join([_why(row), *_confirmed(row)])}")
    for rows, bound in {(row["samples"], row["exact_bound"]) for row in variants if row["exact_bound"]}:
        console.say(
            f"exact: {no_disagreement(rows, bound)}, where the bootstrap that decides gives 0", style="dim"
        )


def _bound(row: Mapping[str, Any]) -> str:
    """Upper end of the loss; where no row differed the bootstrap knows none, and the exact one is told."""
    if row["name"] == FP32:
        return ""
    return _number(row["exact_bound"], "≤{:.1%} exact") or _number(row["drop_bound"], "≤{:+.2%}")


def _confirmed(row: Mapping[str, Any]) -> list[str]:
    """What the rows said that no choice had seen."""
    if row["name"] == FP32 or row["held_out_drop"] is None:
        return []
    if row["held_out_exact_bound"] is not None:
        return [f"held-out: {no_disagreement(row['held_out_samples'], row['held_out_exact_bound'])}"]
    drop, bound = row["held_out_drop"], row["held_out_bound"]
    if drop > bound:  # decision 0010: of few rows that flipped the odds count, not the labels
        return [f"held-out: loss {drop:+.2%} by the labels, at most {bound:+.2%} (95%) by the odds"]
    return [f"held-out: loss {drop:+.2%}, at most {bound:+.2%} (95%)"]


def _milliseconds(microseconds: float | None) -> str:
    if microseconds is None:
        return ""
    return f"{microseconds / 1000:.3g} ms" if microseconds < 100_000 else f"{microseconds / 1000:.0f} ms"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _why(row: Mapping[str, Any]) -> str:
    """For whom it was chosen, or why it lost."""
    words = [
        f"{word} {', '.join(row[key])}"
        for word, key in (("chosen for", "chosen_for"), ("the fallback of", "fallback_for"))
        if row[key]
    ]
    return "; ".join(words or dict.fromkeys(row["lost"].values()) or [row["reason"] or "not chosen"])
