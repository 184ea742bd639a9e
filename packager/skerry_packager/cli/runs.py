"""``skerry runs``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from .. import console
from ..results import FP32, no_disagreement
from .options import json_option

_ROOMY: Final = 96
"""Characters of a line that has room for every column."""
_DISPENSABLE: Final = ("ratio", "p50 here")

run_log_option = click.option(
    "--run-log",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("skerry-runs.db"),
    show_default=True,
    help="The log of packaging runs, an SQLite file.",
)


@click.group()
def runs() -> None:
    """Look into the log of packaging runs.

    'skerry pack' writes down every variant that it tried, what each cost and kept, and why it won or lost.

    \b
    Example:
      skerry runs list
      skerry runs show 3
    """


@runs.command("list")
@click.option("--name", default="", help="Only runs of this model.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="The latest so many."
)
@run_log_option
@json_option
def list_runs(name: str, limit: int, run_log: Path, as_json: bool) -> None:
    """List the latest runs, newest first.

    \b
    Example:
      skerry runs list --name digits --limit 5
    """
    from ..runlog import RunLog

    found = RunLog(run_log, create=False).runs(name=name, limit=limit)
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
@run_log_option
@json_option
def show(number: int, run_log: Path, as_json: bool) -> None:
    """Show one run with every variant that it tried.

    \b
    Example:
      skerry runs show 3
    """
    from ..runlog import RunLog

    run = RunLog(run_log, create=False).run(number)
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
    return [f"held-out: loss {row['held_out_drop']:+.2%}, at most {row['held_out_bound']:+.2%} (95%)"]


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
