"""Prepared disks under the bench's folder."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.torture.bench import Bench
from tests.torture.disks import copy_image, make_image, memory_disk, mounted
from tests.torture.scenarios import Scenario

BALLAST: Final = "lost+found"
"""A folder of ext4's own: no leftover of ours."""


@contextlib.contextmanager
def at_data(bench: Bench, kind: str, image: Path) -> Iterator[None]:
    """The image is mounted as the bench's data folder."""
    shutil.rmtree(bench.data, ignore_errors=True)
    with mounted(kind, image, bench.data):
        yield


def fresh_image(bench: Bench, kind: str, scenario: Scenario) -> Path:
    """A disk as the scenario begins, for one case."""
    pristine = bench.own / f"{kind}-{scenario.name}.img"
    if not pristine.exists():
        making = pristine.with_suffix(".making")
        make_image(kind, making)
        with mounted(kind, making, bench.own / "making"):
            bench.copy_base(scenario, bench.own / "making")
        making.rename(pristine)
    image = bench.own / f"{kind}.img"
    copy_image(pristine, image)
    return image


@contextlib.contextmanager
def disk(bench: Bench, scenario: Scenario, kind: str, options: str) -> Iterator[None]:
    """A disk as the scenario begins, mounted as the data folder; ``options`` are those of a tmpfs."""
    if kind == "tmpfs":
        shutil.rmtree(bench.data, ignore_errors=True)
        with memory_disk(bench.data, options):
            bench.copy_base(scenario, bench.data)
            yield
    else:
        with at_data(bench, kind, fresh_image(bench, kind, scenario)):
            yield


def fill(folder: Path, left_bytes: int) -> None:
    """Ballast takes all space but so much."""
    (folder / BALLAST).mkdir(exist_ok=True)
    file = os.open(folder / BALLAST / "ballast", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        size, step = 0, 64 << 20
        while step >= 4096:
            try:
                os.posix_fallocate(file, size, step)
                size += step
            except OSError:
                step //= 2
        os.ftruncate(file, max(0, size - left_bytes))
        os.fsync(file)
    finally:
        os.close(file)


def use_up_inodes(folder: Path, left: int) -> None:
    """Empty files take all inodes but so many."""
    (folder / BALLAST).mkdir(exist_ok=True)
    number = 0
    while os.statvfs(folder).f_ffree > left:
        (folder / BALLAST / str(number)).touch()
        number += 1


def drop_ballast(folder: Path) -> None:
    for path in (folder / BALLAST).iterdir():
        path.unlink()
