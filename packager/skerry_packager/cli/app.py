"""The root of the command line: which commands there are, and the one place where errors become exit codes.

Commands are loaded when they are called: ``skerry --help`` imports none of them, and a command whose extra
is not installed fails alone, with the line that installs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from skerry_contract.errors import (
    AccessError,
    ConfigError,
    InputError,
    OverloadedError,
    SkerryError,
    TransferError,
    UnavailableError,
)

from .. import console

PLUGINS: Final = "skerry.commands"
"""Entry points of this group become commands."""

EXIT_CODES: Final[Mapping[type[SkerryError], int]] = {
    AccessError: 1,
    ConfigError: 2,
    InputError: 2,
    OverloadedError: 3,
    TransferError: 3,
    UnavailableError: 3,
}
"""Exit code by class of error; 1 for all others."""

_EXTRA_OF: Final[Mapping[str, str]] = {
    "onnx": "packager", "onnxruntime": "packager", "onnxconverter_common": "packager", "rich": "packager",
    "sqlite_utils": "packager", "PIL": "packager", "yaml": "packager", "pydantic": "packager",
    "pyarrow": "parquet", "ai_edge_litert": "tflite", "flatbuffers": "tflite", "model_signing": "packager",
    "fastapi": "fleet", "uvicorn": "fleet", "sqlalchemy": "fleet", "alembic": "fleet", "jinja2": "fleet",
    "pydantic_settings": "fleet", "starlette": "fleet", "skerry_fleet": "fleet",
    "sklearn": "demo", "skl2onnx": "demo",
}  # fmt: skip
"""Top-level module -> the extra of this distribution that brings it."""


@dataclass(frozen=True, slots=True)
class Lazy:
    """A command that is imported when it is called."""

    section: str
    target: str
    """``module:attribute``."""
    summary: str
    """First sentence of its help; a test compares the two."""


_PACK, _RUN, _MORE = "From a model to a signed bundle", "Fleet", "More"
COMMANDS: Final[Mapping[str, Lazy]] = {
    "keys": Lazy(_PACK, "skerry_packager.cli.keys:keys", "Make the keys that sign bundles."),
    "inspect": Lazy(
        _PACK, "skerry_packager.cli.inspect:inspect", "Say what a model or a bundle is, without trusting it."
    ),
    "pack": Lazy(
        _PACK, "skerry_packager.cli.pack:pack", "Turn a model into a signed bundle of its best variants."
    ),
    "verify": Lazy(
        _PACK, "skerry_packager.cli.bundles:verify", "Check the signature and every byte of a bundle."
    ),
    "unpack": Lazy(
        _PACK, "skerry_packager.cli.bundles:unpack", "Write the members of a bundle into a folder."
    ),
    "matrix": Lazy(
        _PACK,
        "skerry_packager.cli.matrix:matrix",
        "Load every variant on each engine version, and compare its answers.",
    ),
    "profile": Lazy(
        _PACK,
        "skerry_packager.cli.profiles:profile",
        "Describe the devices that models are packed for.",
    ),
    "runs": Lazy(_PACK, "skerry_packager.cli.runs:runs", "Look into the log of packaging runs."),
    "publish": Lazy(_RUN, "skerry_packager.cli.bundles:publish", "Upload a bundle to the fleet server."),
    "models": Lazy(_RUN, "skerry_packager.cli.models:models", "See what was published to the fleet server."),
    "devices": Lazy(_RUN, "skerry_packager.cli.devices:devices", "See and enrol the devices of the fleet."),
    "rollout": Lazy(
        _RUN, "skerry_packager.cli.rollouts:rollout", "Bring a published version to the devices, in waves."
    ),
    "alerts": Lazy(_RUN, "skerry_packager.cli.alerts:alerts", "See what the fleet server noticed."),
    "demo": Lazy(
        _MORE,
        "skerry_packager.demo.command:demo",
        "Show the whole journey of a model with real processes on this machine.",
    ),
    "completion": Lazy(
        _MORE, "skerry_packager.cli.completion:completion", "Print the completion script of a shell."
    ),
}
_PLUGIN_SUMMARIES: Final[Mapping[str, str]] = {"fleet": "Run the fleet server."}
"""Of our own plugins; the others' come from their distribution."""


class Root(click.Group):
    """Commands by name out of `COMMANDS` and of plugins; errors to exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(_plugins())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name].target.partition(":")
            found = getattr(import_module(module), attribute)
        elif plugin := _plugins().get(cmd_name):
            found = _load_plugin(plugin)
        else:
            return None
        if not isinstance(found, click.Command):
            raise ConfigError(
                f"the plugin {cmd_name!r} is no command", hint="Update or remove its distribution."
            )
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {_PACK: [], _RUN: [], _MORE: []}
        for name, lazy in COMMANDS.items():
            rows[lazy.section].append((name, lazy.summary))
        for name, plugin in sorted(_plugins().items()):
            rows[_RUN if name in _PLUGIN_SUMMARIES else _MORE].append((name, _summary(plugin)))
        width = max(len(name) for section in rows.values() for name, _ in section)
        for section, items in rows.items():
            with formatter.section(section):
                formatter.write_dl([(name.ljust(width), summary) for name, summary in items])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        summaries = {name: lazy.summary for name, lazy in COMMANDS.items()}
        summaries |= {name: _summary(plugin) for name, plugin in _plugins().items()}
        names = [
            CompletionItem(name, help=text) for name, text in summaries.items() if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["skerry.json"] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Every error of ours, and of a missing extra, ends here."""
        try:
            return super().invoke(ctx)
        except SkerryError as error:
            kind = next((kind for kind in EXIT_CODES if isinstance(error, kind)), None)
            self._complain(ctx, error.code, error.message, error.hint, getattr(error, "__notes__", ()))
            ctx.exit(EXIT_CODES[kind] if kind else 1)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in _EXTRA_OF:
                raise
            message = f"this command needs packages that are not installed ({missing})"
            extra = f"[{_EXTRA_OF[missing]}]"
            hint = f"pip install 'skerry{extra}'; in a clone of the repository: pip install '.{extra}'"
            self._complain(ctx, ConfigError.code, message, hint)
            ctx.exit(2)
        except click.UsageError as error:
            if not ctx.meta["skerry.json"]:
                raise
            path = error.ctx.command_path if error.ctx else "skerry"
            self._complain(ctx, InputError.code, error.format_message(), f"See '{path} --help'.")
            ctx.exit(2)

    @staticmethod
    def _complain(ctx: click.Context, code: str, message: str, hint: str, lines: Sequence[str] = ()) -> None:
        if ctx.meta["skerry.json"]:
            console.print_json({"error": {"code": code, "message": message, "hint": hint}})
        else:
            _print_error(message, hint, lines)


def _print_error(message: str, hint: str, lines: Sequence[str]) -> None:
    try:
        console.print_error(message, hint, lines)
    except ModuleNotFoundError:
        # rich itself may be what is missing.
        click.echo(f"error: {message}\n→ {hint}", err=True)


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=PLUGINS) if point.name not in COMMANDS}


def _summary(plugin: EntryPoint) -> str:
    if plugin.name in _PLUGIN_SUMMARIES:
        return _PLUGIN_SUMMARIES[plugin.name]
    about = plugin.dist.metadata.json.get("summary") if plugin.dist else None
    return str(about) if about else f"From {plugin.module}."


def _load_plugin(plugin: EntryPoint) -> object:
    try:
        return plugin.load()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _EXTRA_OF:
            raise
        name = plugin.dist.name if plugin.dist else plugin.module
        raise ConfigError(
            f"the command {plugin.name!r} of {name} cannot be loaded: no module named {error.name!r}",
            hint=f"Install {name} again, with the extra that brings its commands.",
        ) from error
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the command {plugin.name!r} cannot be loaded: {error}",
            hint="Update or remove its distribution.",
        ) from error


def _show_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if not asked or ctx.resilient_parsing:
        return
    try:
        number = version("skerry")
    except PackageNotFoundError:
        number = "(not installed: run from a checkout)"
    click.echo(f"skerry {number}")
    ctx.exit()


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version and exit.",
)
def skerry() -> None:
    """Pack machine-learning models for small, often-offline machines, and operate them as a fleet.

    \b
    Example:
      skerry keys init --name engineer
      skerry pack digits.onnx --name digits --version 1.0.0 --key engineer.key \\
        --calibration train.npz --evaluation test.npz --profile raspberry-pi-4
      skerry publish digits-1.0.0.skerry
      skerry rollout start digits 1.0.0 --wave 20% --wave 100% --watch

    \b
    Exit codes:
      0  it worked
      1  refused: a bundle, model or data set is not acceptable, nothing fits the budget, the server knows
         no such thing or its state does not allow it, a token or password is missing or wrong, a rollout
         that was watched did not complete, or a disk failed
      2  the command line or a configuration is wrong, or a file, folder, profile, key or variable that it
         names is missing or of the wrong kind
      3  a server, a broker or a device cannot be reached, or is too busy

    With --json every command prints one JSON document; an error is {"error": {code, message, hint}}.
    """
