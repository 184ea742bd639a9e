"""What the commands of ``skerry-runtime`` share: exit codes, the way to the daemon, printing."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from skerry_contract.errors import SkerryError, UnavailableError

from .agent import control
from .config import DeviceConfig, load_config

DONE, FAILED, USAGE, UNREACHABLE = 0, 1, 2, 3
_NARROWEST: Final = 40


class UnreachableError(Exception):
    """No daemon answers."""

    def __init__(self, error: SkerryError) -> None:
        super().__init__(error.message)
        self.error = error


def config_of(options: argparse.Namespace) -> DeviceConfig:
    """The configuration that ``--config`` names. Raises `ConfigError`."""
    # Whether the daemon was started with --insecure-dev is its matter; here nothing is opened to a network.
    return load_config(options.config, insecure_dev=True)


def ask(config: DeviceConfig, request: Mapping[str, Any]) -> Any:
    """The daemon's result. Raises `UnreachableError`, or what the daemon refused."""
    for line in lines(config, request):
        if "result" in line:
            return line["result"]
    raise UnreachableError(UnavailableError("the daemon did not answer"))


def lines(
    config: DeviceConfig, request: Mapping[str, Any], descriptors: tuple[int, ...] = ()
) -> Iterator[Mapping[str, Any]]:
    """Every line of the daemon's answer. Raises as `ask`."""
    try:
        yield from control.request(config.control_socket, request, descriptors)
    except UnavailableError as error:
        raise UnreachableError(error) from error


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Columns in their width; the first ``left`` begin, the others end, on a common line."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column < left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def fold(line: str, columns: int, indent: str) -> list[str]:
    """A line as several of at most so many columns (40 at least), broken between words."""
    return textwrap.wrap(
        line, max(columns, _NARROWEST), subsequent_indent=indent, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip


def say_error(error: SkerryError, code: int, options: argparse.Namespace) -> int:
    """Print an error, as JSON where that was asked for; returns the exit code."""
    if getattr(options, "json", False):
        print_json({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
        return code
    print(f"skerry-runtime: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  → {error.hint}", file=sys.stderr)
    return code
