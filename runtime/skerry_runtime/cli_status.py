"""``skerry-runtime status``: what runs here, how it is, what went wrong and what to do next."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from skerry_contract.errors import ConflictError
from skerry_contract.limits import MIB

from .agent import machine
from .cli_common import DONE, ask, config_of, fold, print_json

_INDENT: Final = " " * 9
_WORDS: Final = {
    "verifying": "being verified",
    "staged": "staged for its self-test",
    "self_test": "in its self-test",
    "pending": "about to answer",
    "probation": "on probation",
    "rolled_back": "rolled back",
}
"""States of an update where the word alone is no sentence."""


def status(options: argparse.Namespace) -> int:
    """Run the command."""
    found = ask(config_of(options), {"do": "status"})
    if options.json:
        print_json(found)
    else:
        # What goes into a file or another program is not broken into lines.
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        try:
            print(describe(found, columns))
        except KeyError as error:
            raise ConflictError(
                f"the daemon is of version {found.get('version', '?')} and does not say {error}, which this"
                f" command of version {machine.agent_version()} wants to show",
                hint="Restart the daemon after an update; 'status --json' shows all that it says.",
            ) from error
    return DONE


def describe(status: Mapping[str, Any], columns: int = 0) -> str:
    """The status in a few lines for people, broken where they are wider than ``columns`` (0: never). Pure."""
    lines = _lines(status)
    if columns:
        lines = (piece for line in lines for piece in fold(line, columns, _INDENT + "  "))
    return "\n".join(lines)


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{status['device']} ({status['org']})  skerry-runtime {status['version']}"
        f"  process {status['pid']}  up {duration(status['uptime_s'])}"
    )
    fleet = status["fleet"]
    yield _fleet(fleet)
    if fleet["error"]:
        yield from _trouble(fleet["error"])
    yield from _trust(status["trust"])
    yield _clock(status["clock"])
    address = status["serve"]["http"]
    yield f"serving  {status['serve']['socket']}" + (f"  http://{address}" if address else "")
    for name, model in status["models"].items():
        yield from _model(name, model)
    if not status["models"]:
        yield "model    none yet: roll one out from the fleet, or 'skerry-runtime install BUNDLE'"
    yield from _outbox(status["outbox"], status["windows"])
    service = status["service"]
    if service["withheld"]:
        yield f"watchdog waits for {', '.join(service['missing'])}"


def _fleet(fleet: Mapping[str, Any]) -> str:
    if fleet["state"] == "off":
        return "fleet    none is configured: updates come by 'skerry-runtime install BUNDLE'"
    order = f"desired revision {fleet['revision']}" if fleet["revision"] else "no order yet"
    return f"fleet    {fleet['state']}  {order}"


def _trust(trust: Mapping[str, Any]) -> Iterator[str]:
    for place, problem in trust["problems"].items():
        yield f"keys     {place} is {problem}"
        yield f"{_INDENT}next: paste the text of the .pub file there, then start the daemon again"
    if not trust["keys"]:
        yield "keys     none: no bundle can be verified"
        yield f"{_INDENT}next: put the engineers' public keys into trust.engineers"


def _clock(clock: Mapping[str, Any]) -> str:
    now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(clock["wall_ms"] / 1000))
    behind = clock["floor_ms"] - clock["wall_ms"]
    if behind > 0:
        return f"clock    {now} UTC is wrong: it is at least {duration(behind / 1000)} later; serving goes on"
    how = (
        "synchronised"
        if clock["synchronised"]
        else "set, not synchronised"
        if clock["quality"]
        else "not synchronised: the fleet corrects the times of what it is told now"
    )
    return f"clock    {now} UTC, {how}"


def _model(name: str, model: Mapping[str, Any]) -> Iterator[str]:
    active = model["active"]
    if active:
        yield (
            f"model    {name} {active['version']}  {active['variant']} on"
            f" {active['engine']} {active['engine_version']}".rstrip()
        )
        if active["execution"]:
            yield f"{_INDENT}runs by {active['execution']}"
        if active["pid"] is None:
            yield f"{_INDENT}nothing answers now: its process is being started"
        else:
            yield _INDENT + _health(active, model["health"])
        if model["trouble"]:
            yield from _trouble(model["trouble"])
        if active["reason"]:
            yield f"{_INDENT}why: {active['reason']}"
    else:
        yield f"model    {name}: nothing answers"
    for slot in model["slots"]:
        problem = f"  {slot['error']}" if slot["error"] else ""
        yield (
            f"  slot   {slot['state']:<8}  {slot['health']:<7}  {slot['version'] or '?'}"
            f"  generation {slot['generation']}{problem}"
        )
    if model["state"] not in ("confirmed", "idle"):
        share = ""
        if model["bytes_total"]:
            share = f", {model['bytes_done'] / MIB:.1f} of {model['bytes_total'] / MIB:.1f} MiB"
        target = f"{model['target_version']} is {_WORDS.get(model['state'], model['state'])}"
        yield f"{_INDENT}{target}{share}  (transaction {model['transaction']})"
    if model["probation"]:
        yield f"{_INDENT}probation ends after {_missing(model['probation'])}"
    if model["error"]:
        yield from _trouble(model["error"])
        if model["transaction"]:
            yield f"{_INDENT}its log: skerry-runtime logs --transaction {model['transaction']}"


def _health(active: Mapping[str, Any], health: Mapping[str, Any]) -> str:
    ram = active["budgets"]["ram_bytes"]
    of_budget = f" of {ram / MIB:.0f}" if ram else ""
    latency = active["budgets"]["latency_p95_us"]
    under = f" (budget {latency / 1000:g})" if latency else ""
    # 0 is no latency: nobody asked lately.
    p95 = f" p95 {health['latency_p95_us'] / 1000:.2f} ms{under};" if health["latency_p95_us"] else ""
    return (
        f"{health['requests']:,} requests, {health['failures']:,} failed;{p95}"
        f" memory {health['rss_bytes'] / MIB:.0f}{of_budget} MiB"
    )


def _missing(probation: Mapping[str, Any]) -> str:
    """What a model on probation still needs.

    >>> _missing({"answered": 3, "answered_wanted": 20, "seconds": 61.0, "seconds_wanted": 60.0})
    '17 more answers'
    """
    answers = probation["answered_wanted"] - probation["answered"]
    seconds = probation["seconds_wanted"] - probation["seconds"]
    parts = [f"{answers:,} more answers"] if answers > 0 else []
    parts += [duration(seconds)] if seconds > 0 else []
    return " and ".join(parts) or "the worker's next report"


def _outbox(outbox: Mapping[str, Any], windows: Mapping[str, Any]) -> Iterator[str]:
    every = duration(windows["window_seconds"])
    yield f"windows  one every {every} or {windows['window_rows']:,} requests"
    budget = outbox["budget_bytes"]
    of_budget = f" of {budget / MIB:.0f}" if budget else ""
    yield (
        f"outbox   {outbox['waiting_rows']} rows wait for the fleet,"
        f" {outbox['used_bytes'] / MIB:.1f}{of_budget} MiB"
    )
    if outbox["merged"]:
        yield f"{_INDENT}{outbox['merged']} windows were merged into longer ones to save space"
    if outbox["gaps"]:
        yield f"{_INDENT}{outbox['gaps']} gaps that the fleet has not yet taken note of"
    if outbox["lost"]:
        yield f"{_INDENT}{outbox['lost']} rows lost since the start, as the disk failed"
    if outbox["error"]:
        yield f"{_INDENT}last error: {outbox['error']}"
        yield f"{_INDENT}next: skerry-runtime doctor"
    if outbox["flash"]:
        yield f"flash    {_flash(outbox['flash'])}"


def _flash(flash: Mapping[str, Any]) -> str:
    if not flash["measured"]:
        return "the kernel does not tell how much is written"
    if flash["bytes_per_day"] is None:
        return f"{flash['written_bytes'] / MIB:.2f} MiB written; the card's life is known after an hour"
    life = ""
    if flash["card_years"] is not None:
        life = f"; the card lasts {flash['card_years']:,g} years ({_assumed(flash['assumed'])})"
    return f"{flash['bytes_per_day'] / MIB:.2f} MiB written a day{life}"


def _assumed(card: Mapping[str, Any]) -> str:
    """Of the card; see ``[flash]`` in docs/device.md."""
    wear = f"{card['amplification']:g} bytes worn for one"
    if card["tbw_bytes"]:
        return f"{card['tbw_bytes'] / 1e12:g} TB by its maker, {wear}"
    return f"{card['card_bytes'] / 1e9:.0f} GB, {card['cycles']} cycles, {wear}"


def _trouble(error: Mapping[str, str]) -> Iterator[str]:
    yield f"{_INDENT}last error: {error['code']}: {error['message']}"
    if error["hint"]:
        yield f"{_INDENT}next: {error['hint']}"


def duration(seconds: float) -> str:
    """For people.

    >>> duration(93784)
    '1 d 2 h'
    >>> duration(3600)
    '1 h'
    """
    for size, unit, smaller, rest in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            left = int(seconds % size // smaller)
            return f"{seconds // size:.0f} {unit}" + (f" {left} {rest}" if left else "")
    return f"{seconds:.0f} s"
