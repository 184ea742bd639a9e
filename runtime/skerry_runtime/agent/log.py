"""What the agent says: fields for journald, readable lines on a terminal, JSON lines otherwise.

``extra`` fields of a log call become keys. Every line of an update carries its ``transaction``: what names a
model and no transaction gets that of the model's update, if one is going on.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from skerry_contract.errors import SkerryError

from .log_journal import JournalHandler, stderr_is_journal
from .log_ring import Ring

_ROOT: Final = "skerry"
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_HEAD: Final = ("time", "level", "part", "message", "traceback")


def get_logger(name: str) -> logging.Logger:
    return logging.getLogger(f"{_ROOT}.{name}")


def set_up(form: str, level: str = "INFO") -> Ring:
    """Begin to log; the ring keeps the newest lines for ``skerry-runtime logs``.

    Args:
        form: ``json``, ``text``, ``journal``, or ``auto`` (journald's fields if stderr goes there, text on a
            terminal, else JSON).
        level: the lowest that is said.
    """
    if form == "auto":
        journal = stderr_is_journal(os.environ)
        form = "journal" if journal else "text" if sys.stderr.isatty() else "json"
    handler = JournalHandler(line_of) if form == "journal" else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Text() if form == "text" else _Json())
    ring = Ring(line_of)
    logger = logging.getLogger(_ROOT)
    logger.handlers[:] = [handler, ring]
    logger.propagate = False
    logger.setLevel(level)
    return ring


def name_transactions(of_model: Callable[[str], str]) -> None:
    """``of_model`` gives the transaction of the update that a model is in, or nothing; in any thread."""

    def add(record: logging.LogRecord) -> bool:
        model = vars(record).get("model")
        if model and not vars(record).get("transaction"):
            record.transaction = of_model(str(model))
        return True

    for handler in logging.getLogger(_ROOT).handlers:
        handler.addFilter(add)


def line_of(record: logging.LogRecord) -> dict[str, Any]:
    """A record's fields as plain JSON."""
    line = {
        "time": _time(record),
        "level": record.levelname.lower(),
        "part": record.name.removeprefix(f"{_ROOT}."),
        "message": record.getMessage(),
        **{
            key: _plain(value)
            for key, value in vars(record).items()
            if key not in _OWN and value not in ("", None)
        },
    }
    if record.exc_info:
        line["traceback"] = logging.Formatter().formatException(record.exc_info)
    return line


def text_of(line: Mapping[str, Any]) -> str:
    """A line for people."""
    extra = "  ".join(f"{key}={_short(value)}" for key, value in line.items() if key not in _HEAD)
    mark = "" if line["level"] in ("info", "debug") else f"{line['level']}: "
    text = f"{line['time'][11:23]}  {line['part']:<10} {mark}{line['message']}"
    text += f"  {extra}" if extra else ""
    return f"{text}\n{line['traceback']}" if "traceback" in line else text


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(line_of(record), ensure_ascii=False, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return text_of(line_of(record))


def _plain(value: Any) -> Any:
    if isinstance(value, SkerryError):
        return {"code": value.code, "message": value.message, "hint": value.hint}
    return value if isinstance(value, (str, int, float, bool, list, dict)) else str(value)


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and {"code", "message"} <= set(value):
        return f"{value['code']}: {value['message']}" + (f" → {value['hint']}" if value.get("hint") else "")
    return str(value)


def _time(record: logging.LogRecord) -> str:
    seconds = time.gmtime(record.created)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', seconds)}.{int(record.msecs):03d}Z"
