"""Writes the generated parts of ``docs/device.md``: the state machine from its table, the commands.

Run it after every change of `skerry_runtime.agent.update` or of an option::

    python docs/make_device_page.py
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from skerry_runtime.agent.update import SETTLED, TRANSITIONS, Event, UpdateState, step
from skerry_runtime.cli import CONFIG_VARIABLE, parser

PAGE: Final = Path(__file__).resolve().parent / "device.md"


def diagram() -> str:
    """The install state machine as a mermaid diagram; events between the same two states share an arrow."""
    arrows: dict[tuple[UpdateState, UpdateState], list[Event]] = {}
    for (state, event), to in TRANSITIONS.items():
        arrows.setdefault((state, to), []).append(event)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {UpdateState.IDLE}"]
    for state in UpdateState:
        lines += [
            f"    {state} --> {to} : {', '.join(sorted(arrows[state, to]))}"
            for to in UpdateState
            if (state, to) in arrows
        ]
    lines += [
        f"    class {','.join(sorted(SETTLED))} settled",
        "    classDef settled font-weight:bold",
        "```",
    ]
    return "\n".join(lines)


def transitions() -> str:
    """Every transition with what the agent does then, as a table."""
    rows = [
        f"| {state} | {event} | {to} | {', '.join(step(state, event)[1]) or 'none'} |"
        for (state, event), to in sorted(
            TRANSITIONS.items(), key=lambda row: (list(UpdateState).index(row[0][0]), row[0][1])
        )
    ]
    return "\n".join(["| state | event | next state | actions |", "|---|---|---|---|", *rows])


def commands() -> str:
    """The help of every command of ``skerry-runtime``."""
    return "\n\n".join(_help(*item) for item in _parsers())


def page(text: str) -> str:
    """The page with its generated parts as they have to be."""
    for name, make in (("diagram", diagram), ("transitions", transitions), ("commands", commands)):
        begin, end = f"<!-- {name}: made by docs/make_device_page.py -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{PAGE.name} has no part called {name}")
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


def _parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    os.environ.pop(CONFIG_VARIABLE, None)
    top = parser()
    yield "skerry-runtime", top
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from ((f"skerry-runtime {name}", child) for name, child in action.choices.items())


def _help(name: str, command: argparse.ArgumentParser) -> str:
    lines = [f"### {name}", "", f"{command.description} {_code(command.epilog or '')}"]
    rows = [_row(action) for action in command._actions if action.dest not in ("help", "command")]
    wanted = [row for row in rows if row]
    if wanted:
        lines += ["", "| argument | meaning |", "|---|---|", *wanted]
    return "\n".join(lines)


def _row(action: argparse.Action) -> str:
    if isinstance(action, argparse._SubParsersAction) or action.dest == argparse.SUPPRESS:
        return ""
    value = action.metavar or ("{" + ",".join(action.choices) + "}" if action.choices else "")
    words = " ".join(
        filter(None, ((action.option_strings or [""])[-1], str(value if action.nargs != 0 else "")))
    )
    meaning = (action.help or "").replace("|", "\\|").replace("%%", "%")
    return f"| `{words}` | {meaning} |"


def _code(epilog: str) -> str:
    """The example of a command in code's type."""
    label, found, example = epilog.partition("Example: ")
    command, dot, rest = example.partition(". ")
    return f"{label}{found}`{command}`{dot}{rest}" if found else epilog


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description="Write the generated parts of docs/device.md.").parse_args()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
