"""``skerry profile``: which classes of devices are known, and what one is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import console
from .options import EXISTING_FILE, json_option

if TYPE_CHECKING:
    from ..profiles import DeviceProfile, Fact


@click.group()
def profile() -> None:
    """Describe the devices that models are packed for.

    \b
    Example:
      skerry profile list
      skerry profile show raspberry-pi-4
      skerry profile measure --name my-board --from this-board.json
    """


@profile.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the profiles that come with Skerry.

    \b
    Example:
      skerry profile list --json
    """
    from ..profiles import load_profile, profile_names

    profiles = [load_profile(name) for name in profile_names()]
    if as_json:
        console.print_json([_brief(each) for each in profiles])
        return
    console.table(
        ("profile", "title", "arch", "RAM", "model", "latency p95", "engines"),
        [
            (
                each.name,
                each.title,
                each.arch,
                console.size(each.ram_bytes),
                console.size(each.size_bytes),
                f"{each.latency_p95_us / 1000:g} ms",
                ", ".join(f"{engine.name} {engine.version}" for engine in each.engines),
            )
            for each in profiles
        ],
        right=("RAM", "model", "latency p95"),
        whole=("profile", "arch"),
    )


@profile.command()
@click.argument("name", metavar="NAME_OR_FILE")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show every fact of a profile with where it comes from.

    \b
    Example:
      skerry profile show raspberry-pi-4
      skerry profile show ./my-board.toml --json
    """
    from ..profiles import load_profile

    found = load_profile(name)
    if as_json:
        console.print_json(_whole(found))
        return
    console.say(f"{found.name}: {found.title}", style="bold")
    console.facts(
        [
            ("arch", found.arch),
            ("cpu", found.cpu_model),
            ("engines", ", ".join(f"{engine.name} {engine.version}" for engine in found.engines)),
            ("accelerators", ", ".join(f"{each.name} ({each.kind})" for each in found.accelerators)),
            ("operators", found.operators or "no table: latencies are predicted from [speed] alone"),
        ]
    )
    console.table(
        ("fact", "value", "provenance", "source"),
        [
            (key, _value(fact), fact.provenance, fact.source)
            for key, fact in sorted((*found.facts.items(), *_engine_facts(found)))
        ],
        right=("value",),
        whole=("fact", "provenance"),
    )


@profile.command()
@click.option("--name", required=True, help="Of the profile: lower-case letters, digits and '-'.")
@click.option(
    "--from",
    "source",
    type=EXISTING_FILE,
    metavar="FILE",
    help="Operator table that 'skerry-runtime bench-ops --out FILE' wrote on the device; without it, this "
    "machine is measured.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Folder for NAME.toml and NAME.operators.json; the current one if not given.",
)
@click.option(
    "--seconds", type=click.FloatRange(1, 3600), default=60, show_default=True, help="For measuring here."
)
@click.option(
    "--store",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("/"),
    show_default=True,
    help="Where models are kept here: its free space counts.",
)
@json_option
def measure(name: str, source: Path | None, out: Path, seconds: float, store: Path, as_json: bool) -> None:
    """Write a profile from what a device measures of itself.

    Memory, flash, instruction sets, engines and the timings of single operators are measured. Budgets are
    assumed by simple rules, which stand beside them: replace them with your own.

    \b
    Example:
      skerry profile measure --name this-machine
      skerry profile measure --name my-board --from this-board.json --out profiles
    """
    import json

    from skerry_contract.errors import StorageError

    from ..costs import parse_table, read_table
    from ..measured_profile import profile_toml
    from ..profiles import read_profile

    if source is None:
        data = json.dumps(_bench(seconds, store, quiet=as_json), indent=1) + "\n"
        table = parse_table(json.loads(data), "the table of this machine")
    else:
        table = read_table(source)
        data = source.read_text()
    operators = f"{name}.operators.json"
    text = profile_toml(name, table, operators)
    path = out / f"{name}.toml"
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / operators).write_text(data)
        path.write_text(text)
    except OSError as error:
        raise StorageError(f"{error.filename} cannot be written: {error.strerror}") from error
    notes = [*table.machine["notes"]]
    if as_json:
        made = _whole(read_profile(path))
        console.print_json({"profile": str(path), "operators": str(out / operators), "notes": notes, **made})
        return
    for note in notes:
        console.warn(note)
    console.say(f"{path}: {table.machine['title']}, {len(table.points)} operator timings", style="bold")
    console.say(f"Set the budgets in it, then: skerry pack MODEL --profile {path} …")


def _bench(seconds: float, store: Path, *, quiet: bool) -> dict[str, Any]:
    from skerry_runtime.worker.bench_ops.cases import cases
    from skerry_runtime.worker.bench_ops.measure import collect

    from ..engine import engine_of

    with console.progress(quiet=quiet) as step:
        return collect(engine_of("onnx"), cases("onnx"), seconds, store=store, progress=step)


def _brief(found: DeviceProfile) -> dict[str, Any]:
    return {
        "name": found.name,
        "title": found.title,
        "arch": found.arch,
        "ram_bytes": found.ram_bytes,
        "flash_bytes": found.flash_bytes,
        "size_bytes": found.size_bytes,
        "latency_p95_us": found.latency_p95_us,
        "engines": {engine.name: engine.version for engine in found.engines},
    }


def _whole(found: DeviceProfile) -> dict[str, Any]:
    return {
        **_brief(found),
        "cpu": found.cpu_model,
        "operators": None if found.operators is None else str(found.operators),
        "accelerators": [{"name": each.name, "kind": each.kind} for each in found.accelerators],
        "facts": {
            key: {"value": fact.value, "provenance": fact.provenance, "source": fact.source}
            for key, fact in sorted((*found.facts.items(), *_engine_facts(found)))
        },
    }


def _engine_facts(found: DeviceProfile) -> list[tuple[str, Fact]]:
    return [
        (f"engines.{engine.name}.{key}", fact)
        for engine in found.engines
        for key, fact in (("max_ir", engine.max_ir), ("max_opset", engine.max_opset))
        if fact is not None
    ]


def _value(fact: Fact) -> str:
    return " ".join(map(str, fact.value)) if isinstance(fact.value, list) else str(fact.value)
