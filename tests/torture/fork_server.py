"""Forks a child for every deed, with everything imported already: ``python -m tests.torture.fork_server FD``.

One order a line on stdin, as JSON; the child's number and then its status on stdout. A child that is to be
traced waits, calling `getpriority`, which the tracer sees and nobody counts, until the board says begin: so
the first system call that counts is the deed's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Final

import msgspec
from tests.torture.board import Board
from tests.torture.deeds_models import MODEL_DEEDS, Deed, Order, no_reserve
from tests.torture.deeds_outbox import OUTBOX_DEEDS
from tests.torture.desk import trust_in_process
from tests.torture.mistakes import plant

from skerry_contract.errors import SkerryError
from skerry_runtime.worker.engines import import_engine

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_PTRACER: Final = 0x59616D61
_libc = ctypes.CDLL(None)


class Job(msgspec.Struct, kw_only=True):
    """An order, and how it is carried out."""

    order: Order
    mistake: str = ""
    waits: bool = False
    """For the board's word, before the deed begins."""
    here: bool = False
    """In this process: all that is imported late is there afterwards."""


def main(board: Board) -> None:
    _die_with_parent()
    logging.getLogger().addHandler(logging.NullHandler())
    trust_in_process()
    import_engine("onnx")
    importlib.import_module("skerry_runtime.worker.loaded")
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        job = msgspec.json.decode(line, type=Job)
        if job.here:
            _carry_out(job, board)
            print(0, flush=True)
            continue
        child = os.fork()
        if child == 0:
            try:
                _die_with_parent()
                _libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
                gc.disable()
                _carry_out(job, board)
            finally:
                os._exit(0)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(status, flush=True)


def _carry_out(job: Job, board: Board) -> None:
    deeds: dict[str, Callable[[Order, Board], Deed]] = {**MODEL_DEEDS, **OUTBOX_DEEDS}
    try:
        no_reserve(job.order)
        plant(job.mistake)
        deed = deeds[job.order.deed](job.order, board)
        if job.waits:
            board.note(ready=True)
            while not board.may_begin:
                os.getpriority(os.PRIO_PROCESS, 0)
                time.sleep(0.001)
        try:
            said = deed()
        except SkerryError as error:
            said = {"raised": error.code, "message": str(error)}
        board.note(end=said)
    except Exception:  # noqa: BLE001 - the child's boundary: whatever it was, the judge must see it
        with contextlib.suppress(Exception):
            board.note(end={"faults": [traceback.format_exc()]})


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    main(Board(int(sys.argv[1])))
