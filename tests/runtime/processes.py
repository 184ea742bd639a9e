"""The processes below another one, as /proc shows them."""

from __future__ import annotations

import os
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """Children, their children, and so on; zombies are left out."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _fields(folder)
        if fields and not fields["State"].startswith("Z"):
            children.setdefault(int(fields["PPid"]), []).append(int(folder.name))
    found: set[int] = set()
    new = children.get(pid, [])
    while new:
        found.update(new)
        new = [grandchild for child in new for grandchild in children.get(child, [])]
    return found


def alive(pid: int) -> bool:
    """Whether it runs: no zombie, not gone."""
    fields = _fields(Path(f"/proc/{pid}"))
    return bool(fields) and not fields["State"].startswith("Z")


def zombies_of(pid: int) -> set[int]:
    """Children that have ended and nobody waited for."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _fields(folder)
        if fields and fields["State"].startswith("Z") and int(fields["PPid"]) == pid:
            found.add(int(folder.name))
    return found


def parent_of(pid: int) -> int:
    """0 if it is gone."""
    return int(_fields(Path(f"/proc/{pid}")).get("PPid", "0"))


def _fields(folder: Path) -> dict[str, str]:
    """Of ``/proc/PID/status``; empty if it is gone."""
    try:
        lines = os.fsdecode((folder / "status").read_bytes()).splitlines()
    except OSError:
        return {}
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)
