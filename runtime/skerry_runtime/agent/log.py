"""What the agent says: readable lines on a terminal, JSON lines otherwise, always on stderr.

``extra`` fields of a log call become keys; ``transaction`` ties the lines of one update together.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Final

from skerry_contract.errors import SkerryError

_ROOT: Final = "skerry"
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def get_logger(name: str) -> logging.Logger:
    return logging.getLogger(f"{_ROOT}.{name}")


def set_up(form: str, level: str = "INFO") -> None:
    """``form``: ``json``, ``text``, or ``auto`` (text on a terminal)."""
    as_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Text())
    logger = logging.getLogger(_ROOT)
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "part": record.name.removeprefix(f"{_ROOT}."),
            "message": record.getMessage(),
            **{key: _plain(value) for key, value in _extra(record).items()},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        extra = "  ".join(f"{key}={_short(value)}" for key, value in _extra(record).items())
        mark = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        line = (
            f"{_time(record)[11:23]}  {record.name.removeprefix(_ROOT + '.'):<10} {mark}{record.getMessage()}"
        )
        if extra:
            line += f"  {extra}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _OWN and value not in ("", None)}


def _plain(value: Any) -> Any:
    if isinstance(value, SkerryError):
        return {"code": value.code, "message": value.message, "hint": value.hint}
    return value if isinstance(value, (str, int, float, bool, list, dict)) else str(value)


def _short(value: Any) -> str:
    if isinstance(value, SkerryError):
        return f"{value.code}: {value.message}" + (f" → {value.hint}" if value.hint else "")
    return str(value)


def _time(record: logging.LogRecord) -> str:
    seconds = time.gmtime(record.created)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', seconds)}.{int(record.msecs):03d}Z"
