"""``skerry demo``: plays the story, shows the table, leaves nothing running unless asked to."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from skerry_contract.errors import InputError, SkerryError, UnavailableError

from .processes import PLAN, end_demo

if TYPE_CHECKING:
    from .story import Line, Story

_EXAMPLE = """
Example:

\b
  skerry demo
  skerry demo --keep        # then look around; the end tells how to stop it
  skerry demo --stop FOLDER # stop what --keep left running
"""


@click.command(help=f"Show the whole journey of a model with real processes on this machine.\n{_EXAMPLE}")
@click.option("--keep", is_flag=True, help="Leave everything running and print the addresses.")
@click.option(
    "--stop", "stop", type=click.Path(path_type=Path), help="Stop the demo that was kept in this folder."
)
@click.option("--folder", type=click.Path(path_type=Path), help="Work here instead of in a temporary folder.")
@click.option(
    "--record", type=click.Path(path_type=Path, dir_okay=False), help="Write what was told as an SVG picture."
)
@click.option("--json", "as_json", is_flag=True, help="Print the closing table as JSON on standard output.")
def demo(keep: bool, stop: Path | None, folder: Path | None, record: Path | None, as_json: bool) -> None:
    from .story import Line, Story, StoryError

    console = Console(
        stderr=as_json, record=record is not None, width=118 if record else None, soft_wrap=not record
    )
    if stop is not None:
        _stop(stop.resolve(), console)
        return
    _need_mosquitto()
    made = folder is None
    # Unix sockets have short paths: the system's folder for temporary files, not a deep one.
    place = Path(tempfile.mkdtemp(prefix="skerry-demo-")) if folder is None else folder.resolve()
    place.mkdir(parents=True, exist_ok=True)
    if any(place.iterdir()):
        raise click.UsageError(f"{place} is not empty: name a new folder.")
    story = Story(place, console)
    broken = ""
    try:
        story.play()
    except (StoryError, SkerryError) as error:
        broken = str(error) + (f"\n→ {error.hint}" if isinstance(error, SkerryError) and error.hint else "")
    except KeyboardInterrupt:
        broken = "interrupted"
    except BaseException:
        story.processes.end_all()
        end_demo(place)
        raise
    kept = keep and not broken
    if not kept:
        story.processes.end_all()
        left = end_demo(place)
        story.lines.append(Line("nothing is left running", f"{len(left)} processes left", not left))
    good = not broken and all(line.holds for line in story.lines)
    if as_json:
        click.echo(
            json.dumps({"ok": good, "lines": [_plain(line) for line in story.lines], "broken": broken})
        )
    console.print(_table(story.lines))
    if broken:
        console.print(f"[bold red]The story broke off:[/] {escape(broken)}")
    if not good:
        console.print(f"The logs are in {place}")
    console.print(f"[dim]{time.monotonic() - story.began:.0f} s[/]")
    if kept:
        _addresses(story, console)
    elif good and made:
        shutil.rmtree(place, ignore_errors=True)
    if record is not None:
        # Without rich's fonts, which a browser would fetch from another server.
        picture = re.sub(r"@font-face \{[^}]*\}", "", console.export_svg(title="skerry demo"))
        record.write_text(picture)
    sys.exit(0 if good else 1)


def _need_mosquitto() -> None:
    """Debian puts it where no user's PATH looks. Raises `UnavailableError`: it is not installed."""
    if (
        shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin")
        is None
    ):
        raise UnavailableError(
            "the MQTT broker Mosquitto is not installed", hint="sudo apt-get install mosquitto"
        )


def _table(lines: list[Line]) -> Table:
    table = Table(title="What was shown", title_justify="left", show_lines=True)
    table.add_column("claim", ratio=5)
    table.add_column("measured", ratio=6)
    table.add_column("holds", justify="center")
    for line in lines:
        table.add_row(
            escape(line.claim), escape(line.measured), "[green]yes[/]" if line.holds else "[bold red]NO[/]"
        )
    return table


def _plain(line: Line) -> dict[str, object]:
    return {"claim": line.claim, "measured": line.measured, "holds": line.holds}


def _addresses(story: Story, console: Console) -> None:
    from .story import DEVICES

    console.print("\n[bold]Still running[/]")
    console.print(f"  dashboard and API  {story.server}")
    console.print(f"  admin token        {story.folder / 'fleet' / 'admin.token'}")
    console.print(f"  MQTT broker        mqtt://127.0.0.1:{story.broker_port}")
    for device in DEVICES:
        console.print(f"  {device:18} {story.folder / device / 'run' / 'skerry.sock'}")
    here = Path(sys.executable).parent
    programs = os.path.relpath(here) if here.is_relative_to(Path.cwd()) else str(here)
    console.print("\n[bold]Try[/]")
    console.print(f"  export SKERRY_SERVER={story.server} SKERRY_TOKEN_FILE={story.folder}/fleet/admin.token")
    console.print(f"  {programs}/skerry devices list")
    console.print(f"  {programs}/skerry rollout status")
    console.print(f"  {programs}/skerry-runtime status --config {story.config(DEVICES[0])}")
    console.print("\n[bold]Stop[/]")
    console.print(f"  {programs}/skerry demo --stop {story.folder}")


def _stop(folder: Path, console: Console) -> None:
    if not (folder / PLAN).exists():
        raise InputError(f"{folder} is not the folder of a demo", hint="'skerry demo --keep' printed it.")
    left = end_demo(folder)
    if left:
        raise click.ClickException(f"these processes would not end: {left}")
    console.print(f"Nothing of the demo in {folder} is running any more; the folder may be removed.")
