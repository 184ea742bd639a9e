"""``skerry-runtime logs``: the daemon's lines from its memory; where no daemon answers, those of journald."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .agent.log import text_of
from .agent.log_journal import PREFIX
from .cli_common import DONE, UnreachableError, config_of, lines

UNIT: Final = "skerry-runtime"
_LEVELS: Final = {"3": "error", "4": "warning", "6": "info", "7": "debug"}


def logs(options: argparse.Namespace) -> int:
    """Run the command; raises `UnreachableError` if neither a daemon nor journald has lines."""
    request = {
        "do": "logs", "lines": options.lines, "transaction": options.transaction, "follow": options.follow,
    }  # fmt: skip
    answered = False
    try:
        for answer in lines(config_of(options), request):
            answered = True
            if "line" in answer:
                _print(answer["line"], options)
    except UnreachableError:
        # One that goes away in the middle has said what it had.
        if answered or shutil.which("journalctl") is None or not _of_journal(options):
            raise
    except KeyboardInterrupt:
        return DONE  # how a person ends --follow
    return DONE


def _of_journal(options: argparse.Namespace) -> int:
    """Print journald's lines; how many there were."""
    command = ["journalctl", f"--unit={UNIT}", "--output=json", "--no-pager", f"--lines={options.lines}"]
    command += ["--quiet", *(["--follow"] if options.follow else [])]
    if options.transaction:
        command.append(f"{PREFIX}TRANSACTION={options.transaction}")
    count = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            for line in _parsed(process.stdout or ()):
                count += 1
                _print(line, options)
        except KeyboardInterrupt:
            count += 1
        finally:
            process.terminate()
    return count


def _parsed(output: Any) -> Iterator[dict[str, Any]]:
    for text in output:
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            yield from_journal(json.loads(text))


def from_journal(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of ``journalctl --output=json`` as a line of ours.

    Raises:
        ValueError, TypeError: it is none.
    """
    seconds, microseconds = divmod(int(entry.get("__REALTIME_TIMESTAMP", 0)), 1_000_000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    own = {key.removeprefix(PREFIX).lower(): value for key, value in entry.items() if key.startswith(PREFIX)}
    return {
        "time": f"{stamp}.{microseconds // 1000:03d}Z",
        "level": _LEVELS.get(str(entry.get("PRIORITY", "6")), "info"),
        "part": own.pop("part", str(entry.get("SYSLOG_IDENTIFIER", ""))),
        "message": _message(entry.get("MESSAGE")),
        **own,
    }


def _message(value: Any) -> str:
    """journalctl gives what is not UTF-8 as a list of bytes."""
    return bytes(value).decode(errors="replace") if isinstance(value, list) else str(value)


def _print(line: Mapping[str, Any], options: argparse.Namespace) -> None:
    print(json.dumps(line, ensure_ascii=False) if options.json else text_of(line), flush=True)
