"""``skerry-runtime status``: what runs here, how it is, what went wrong and what to do next."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from .cli_common import DONE, ask, config_of, print_json

MIB = 1 << 20


def status(options: argparse.Namespace) -> int:
    """Run the command."""
    found = ask(config_of(options), {"do": "status"})
    if options.json:
        print_json(found)
    else:
        print(describe(found))
    return DONE


def describe(status: Mapping[str, Any]) -> str:
    """The status in a few lines for people. Pure."""
    return "\n".join(_lines(status))


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{status['device']} ({status['org']})  skerry-runtime {status['version']}"
        f"  process {status['pid']}  up {duration(status['uptime_s'])}"
    )
    fleet = status["fleet"]
    yield f"fleet    {fleet['state']}  desired revision {fleet['revision']}"
    if fleet["error"]:
        yield from _trouble(fleet["error"])
    address = status["serve"]["http"]
    yield f"serving  {status['serve']['socket']}" + (f"  http://{address}" if address else "")
    for name, model in status["models"].items():
        yield from _model(name, model)
    if not status["models"]:
        yield "model    none yet: roll one out from the fleet, or 'skerry-runtime install BUNDLE'"
    yield from _outbox(status["outbox"])
    service = status.get("service", {})
    if service.get("withheld"):
        yield f"watchdog waits for {', '.join(service['missing'])}"


def _model(name: str, model: Mapping[str, Any]) -> Iterator[str]:
    active, health = model["active"], model["health"]
    if active:
        yield (
            f"model    {name} {active['version']}  {active['variant']} on {active['engine']}"
            f"  {health['requests']} requests, {health['failures']} failed,"
            f" p95 {health['latency_p95_us'] / 1000:.2f} ms, {health['rss_bytes'] / MIB:.0f} MiB"
        )
    else:
        yield f"model    {name}: nothing answers"
    for slot in model.get("slots", ()):
        problem = f"  {slot['error']}" if slot["error"] else ""
        yield (
            f"  slot   {slot['state']:<8}  {slot['health']:<7}  {slot['version'] or '?'}"
            f"  generation {slot['generation']}{problem}"
        )
    if model["phase"] and model["phase"] != "confirmed":
        share = f"  {model['bytes_done']} of {model['bytes_total']} bytes" if model["bytes_total"] else ""
        yield (
            f"         {model['target_version']}: {model['phase']}{share}"
            f"  (transaction {model['transaction']})"
        )
    if model["reason"]:
        yield f"         why this variant: {model['reason']}"
    if model["error"]:
        yield from _trouble(model["error"])
        if model["transaction"]:
            yield f"         its log: skerry-runtime logs --transaction {model['transaction']}"


def _outbox(outbox: Mapping[str, Any]) -> Iterator[str]:
    trouble = "".join(
        f"  {text}" for text, count in (
            (f"{outbox['gaps']} gaps", outbox["gaps"]), (f"{outbox['lost']} lost", outbox["lost"]),
        ) if count
    )  # fmt: skip
    yield f"outbox   {outbox['waiting_rows']} rows wait, {outbox['used_bytes'] / MIB:.1f} MiB{trouble}"
    flash = outbox.get("flash") or {}
    if flash.get("bytes_per_day") is not None:
        life = f", the card lasts {flash['card_years']:g} years" if flash["card_years"] else ""
        yield f"flash    {flash['bytes_per_day'] / MIB:.2f} MiB written a day{life}"
    if outbox["error"]:
        yield f"         last error: {outbox['error']}"
        yield "         next: skerry-runtime doctor"


def _trouble(error: Mapping[str, str]) -> Iterator[str]:
    yield f"         last error: {error['code']}: {error['message']}"
    if error["hint"]:
        yield f"         next: {error['hint']}"


def duration(seconds: float) -> str:
    """For people.

    >>> duration(93784)
    '1 d 2 h'
    """
    for size, unit, smaller, rest in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} {seconds % size // smaller:.0f} {rest}"
    return f"{seconds:.0f} s"
