"""How much of the built wheel is what a device needs: the packages of contract and runtime.

The wheel is a compressed archive: what counts is the compressed size, as it travels. The size of the files on
the device's disk stands beside it.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from ..children import ROOT
from ..device import CommandError
from ..gates import Figure
from ..world import World

DEVICE_PACKAGES = ("skerry_contract/", "skerry_runtime/")


def measure(world: World) -> dict[str, Figure]:
    out = world.folder / "wheel"
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    wheels = list(out.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise CommandError(f"the wheel cannot be built: {done.stderr[-500:]}")
    return {"wheel": _figure(wheels[0])}


def _figure(wheel: Path) -> Figure:
    with zipfile.ZipFile(wheel) as archive:
        zipped, plain, files = sizes(archive.infolist())
    whole = wheel.stat().st_size / 1e3
    detail = f"compressed; {files} files, {plain / 1e3:.0f} kB unpacked; the whole wheel has {whole:.0f} kB"
    return Figure(value=zipped / 1e3, detail=detail)


def sizes(members: Iterable[zipfile.ZipInfo]) -> tuple[int, int, int]:
    """Of the device's packages: bytes in the archive, bytes unpacked, files."""
    mine = [one for one in members if one.filename.startswith(DEVICE_PACKAGES)]
    return sum(one.compress_size for one in mine), sum(one.file_size for one in mine), len(mine)
