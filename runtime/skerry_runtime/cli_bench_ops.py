"""``skerry-runtime bench-ops``: time single operators on this device."""

from __future__ import annotations

import argparse
import json
import sys

from skerry_contract.errors import InputError, StorageError

from .cli_common import DONE, print_json


def bench_ops(options: argparse.Namespace) -> int:
    """Run the command."""
    # Only this command pays for numpy and an engine.
    from .worker.bench_ops.cases import cases
    from .worker.bench_ops.measure import collect
    from .worker.bench_ops.summary import summary
    from .worker.engines import import_engine

    if options.out is not None and not options.out.absolute().parent.is_dir():
        raise InputError(f"there is no folder {options.out.absolute().parent}", hint="Make it first.")
    engine = import_engine(options.engine)
    table = collect(
        engine, cases(options.engine), options.seconds, store=options.store,
        progress=lambda what, done, total: _progress(what, done, total, quiet=options.json),
    )  # fmt: skip
    if options.out is not None:
        try:
            options.out.write_text(json.dumps(table, indent=1) + "\n")
        except OSError as error:
            raise StorageError(f"{options.out} cannot be written: {error.strerror}") from error
    if options.json:
        print_json(table)
    else:
        print(summary(table, "" if options.out is None else str(options.out)))
    return DONE


def _progress(what: str, done: int, total: int, *, quiet: bool) -> None:
    if quiet:
        return
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r[{done}/{total}] {what}\033[K", end=end, file=sys.stderr, flush=True)
    elif done % 20 == 0 or done == total:
        print(f"[{done}/{total}] {what}", file=sys.stderr, flush=True)
