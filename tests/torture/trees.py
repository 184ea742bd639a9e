"""Copies of data folders that keep hard links: a generation is made of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def copy_tree(source: Path, target: Path) -> None:
    """Into a folder that is there and may hold ``lost+found``."""
    links: dict[int, Path] = {}
    target.mkdir(exist_ok=True)
    for folder, _, files in os.walk(source):
        here = target / Path(folder).relative_to(source)
        here.mkdir(mode=0o700, exist_ok=True)
        for name in files:
            old = Path(folder) / name
            inode = old.stat().st_ino
            if inode in links:
                os.link(links[inode], here / name)
            else:
                shutil.copy2(old, here / name)
                links[inode] = here / name


def reset(source: Path, target: Path) -> None:
    """Make the target a copy of the source."""
    shutil.rmtree(target, ignore_errors=True)
    copy_tree(source, target)
