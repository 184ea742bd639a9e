"""``python -m tests.torture``: what a disk, a kill or a power cut can do; see docs/reliability.md."""

from __future__ import annotations

import json
import platform
import secrets
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
from tests.torture.bench import Bench, Case
from tests.torture.cuts import cut_cases
from tests.torture.disks import FILE_SYSTEMS, private_mounts, why_no_disks
from tests.torture.full import full_cases
from tests.torture.kills import fault_cases, kill_cases
from tests.torture.mistakes import MISTAKES
from tests.torture.order import order_cases
from tests.torture.proofs import prove
from tests.torture.results import Proof, Report, merge
from tests.torture.runs import Counts, Step, benches, carry_out, carry_out_all, case_of, sample
from tests.torture.scenarios import SCENARIOS

from skerry_packager.console import progress

MEANS: Final = ("kill", "fault", "full", "order", "cut", "mistakes")
_SHM: Final = Path("/dev/shm")  # noqa: S108 - a folder with a random name is made in it
_SCRATCH_BYTES: Final = 3 << 30


@click.command()
@click.option("--only", multiple=True, type=click.Choice(MEANS), help="Only this means; may be repeated.")
@click.option("--quick", is_flag=True, help="A tenth of the cases, and 20 power cuts of each kind.")
@click.option("--limit", type=int, default=0, help="At most so many cases of each means, drawn by the seed.")
@click.option("--cycles", type=int, default=0, help="Power cuts of each kind (200; with --quick 20).")
@click.option("--every-error", is_flag=True, help="Every error at every call, instead of a drawn one.")
@click.option("--seed", type=int, help="Repeat an earlier run.")
@click.option("--jobs", type=click.IntRange(1, 16), default=2, help="Benches side by side.")
@click.option("--case", "name", help="Do this one case again, by the name that a report gave it.")
@click.option("--mistake", type=click.Choice(sorted(MISTAKES)), help="With --case: plant this mistake.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report to this file.")
@click.option("--without-disks", is_flag=True, help="Leave out what needs root to mount.")
def main(
    only: tuple[str, ...],
    quick: bool,
    limit: int,
    cycles: int,
    every_error: bool,
    seed: int | None,
    jobs: int,
    name: str | None,
    mistake: str | None,
    json_file: Path | None,
    without_disks: bool,
) -> None:
    """Torture installs, activation, rollback, collection and the outbox; status 1 if anything was lost."""
    reason = "--without-disks" if without_disks else why_no_disks()
    if reason and not without_disks:
        raise click.ClickException(f"{reason}\n  run it as root, or leave disks out with --without-disks")
    if shutil.which("strace") is None:
        raise click.ClickException("strace is missing (package strace)")
    if not reason:
        private_mounts()
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    print(f"seed {seed}", flush=True)
    where = _SHM if _SHM.is_dir() and shutil.disk_usage(_SHM).free > _SCRATCH_BYTES else None
    with tempfile.TemporaryDirectory(prefix="skerry-torture-", dir=where) as folder:
        with benches(Path(folder), 1 if name else jobs) as made, progress() as step:
            if name:
                sys.exit(_one(made[0], name, mistake or ""))
            plan = _Plan(
                seed=seed,
                means=only or MEANS,
                share=10 if quick else 1,
                limit=limit,
                cycles=cycles or (20 if quick else 200),
                every_error=every_error,
                kinds=() if reason else FILE_SYSTEMS,
            )
            report = plan.run(made, step, reason)
    report.show()
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    sys.exit(1 if report.bad or report.uncaught else 0)


class _Plan:
    """What is to be done."""

    def __init__(
        self,
        *,
        seed: int,
        means: tuple[str, ...],
        share: int,
        limit: int,
        cycles: int,
        every_error: bool,
        kinds: tuple[str, ...],
    ) -> None:
        self.seed, self.means, self.share, self.limit = seed, means, share, limit
        self.cycles, self.every_error, self.kinds = cycles, every_error, kinds

    def run(self, made: list[Bench], step: Step, skipped: str) -> Report:
        counts: Counts = {}
        if {"kill", "fault", "order", "mistakes"} & set(self.means):
            for number, (name, scenario) in enumerate(SCENARIOS.items()):
                step("counting system calls", number, len(SCENARIOS))
                counts[name] = made[0].count(scenario)
        cases = [case for means in self.means for case in self._cases(means, counts)]
        results = carry_out_all(made, cases, step)
        proofs = list(self._proofs(made[0], counts, step)) if "mistakes" in self.means else []
        return Report(
            seed=self.seed,
            machine=_machine(),
            results=tuple(merge(results)),
            proofs=tuple(proofs),
            skipped=skipped,
        )

    def _cases(self, means: str, counts: Counts) -> list[Case]:
        match means:
            case "kill":
                every = list(kill_cases(counts))
            case "fault":
                every = list(fault_cases(counts, self.seed, every=self.every_error))
            case "order":
                every = list(order_cases(counts))
            case "full" if self.kinds:
                every = list(full_cases(self.kinds))
            case "cut" if self.kinds:
                return sample(cut_cases(self.cycles, self.seed, self.kinds), self.limit, self.seed)
            case _:
                return []
        most = max(1, len(every) // self.share)
        return sample(every, min(most, self.limit or most), self.seed)

    def _proofs(self, bench: Bench, counts: Counts, step: Step) -> Iterator[Proof]:
        for number, mistake in enumerate(MISTAKES):
            step(f"planted: {mistake}", number, len(MISTAKES))
            yield prove(
                mistake,
                counts,
                self.seed,
                max(40, self.cycles),
                self.kinds,
                lambda case: bool(carry_out(bench, case).faults),
                by_all=self.share == 1 and not self.limit,
            )


def _one(bench: Bench, name: str, mistake: str) -> int:
    try:
        case = case_of(name, mistake)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    result = carry_out(bench, case)
    print(f"{name}: {'BAD' if result.faults else 'good'}", *result.faults, sep="\n  ")
    return 1 if result.faults else 0


def _machine() -> dict[str, Any]:
    """What a reader must know to compare figures."""
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
