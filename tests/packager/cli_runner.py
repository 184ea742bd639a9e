"""Runs the command line in this process, and says what a script would see."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click
from click.testing import CliRunner

from skerry_packager.cli.app import skerry


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def text(self) -> str:
        """Everything that a person sees, in one line, so that line breaks of the terminal do not matter."""
        return " ".join((self.out + " " + self.err).split())


def run(*arguments: object, env: Mapping[str, str | None] | None = None) -> Outcome:
    """Call ``skerry`` with these arguments. An exception that is no exit code fails the test."""
    result = CliRunner().invoke(skerry, [str(item) for item in arguments], env=env, prog_name="skerry")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def all_commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command, those of installed plugins too: its full name, itself, its context."""
    root = click.Context(skerry, info_name="skerry", **skerry.context_settings)
    yield "skerry", skerry, root
    for name in skerry.list_commands(root):
        command = skerry.get_command(root, name)
        assert command is not None
        yield from _below(name, command, root)


def _below(
    name: str, command: click.Command, parent: click.Context
) -> Iterator[tuple[str, click.Command, click.Context]]:
    context = click.Context(command, info_name=name, parent=parent)
    yield context.command_path, command, context
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from _below(child, found, context)
