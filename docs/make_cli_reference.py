"""Writes ``docs/reference/cli.md`` from the commands' own help, so that the page cannot tell another story.

Run it after every change of an option::

    .venv/bin/python docs/make_cli_reference.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from skerry_packager.cli.app import skerry

PAGE: Final = Path(__file__).resolve().parent / "reference" / "cli.md"
WIDTH: Final = 100
_HEAD: Final = """\
# The skerry command

This page is made by `docs/make_cli_reference.py` from what `--help` prints. On a device there is
`skerry-runtime` instead: see [devices](../device.md#commands).
"""


def sections() -> dict[str, str]:
    """Full name of a command -> its part of the page, in the order of ``skerry --help``."""
    return dict(_sections("skerry", skerry, None))


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *sections().values()])


def _sections(name: str, command: click.Command, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    path = context.command_path
    level = "#" * min(4, 1 + len(path.split()))
    yield path, f"{level} {path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None:
                yield from _sections(child, found, context)


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(
        description="Write docs/reference/cli.md from the help of every command."
    ).parse_args()
    if "skerry fleet" not in sections():
        raise SystemExit("error: skerry is not installed here, its plugins are missing: use .venv/bin/python")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
