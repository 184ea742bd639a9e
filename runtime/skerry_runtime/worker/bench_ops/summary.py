"""An operator table in a few lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skerry_contract.limits import GIB


def summary(table: Mapping[str, Any], path: str) -> str:
    """What was timed, how fast this machine is at best, and what to do with the file at `path`."""
    machine, rows = table["machine"], table["operators"]
    lines = [
        f"{machine['title']}  {machine['arch']}  {machine['cpu']}",
        f"{machine['cores']} cores ({' '.join(machine['isa']) or 'no known extension'}), "
        f"RAM {machine['ram_available_bytes'] / GIB:.1f} of {machine['ram_total_bytes'] / GIB:.1f} GiB free, "
        f"flash {machine['flash_free_bytes'] / GIB:.1f} GiB free",
        f"{len(rows)} cases timed in {table['seconds']:.0f} s with {table['engine']['name']} "
        f"{table['engine']['version']}, {len(table['missing'])} not supported, "
        f"{len(table['left_out'])} left out for time",
    ]
    best: dict[tuple[str, str], float] = {}
    for row in rows:
        key = row["kind"], row["datatype"]
        best[key] = max(best.get(key, 0.0), row["flops"] / row["us"] / 1000)
    for (kind, datatype), speed in sorted(best.items()):
        lines.append(f"  {kind:<15} {datatype}  up to {speed:8.2f} G operations/s")
    lines += [f"note: {note}" for note in machine["notes"]]
    if table["drift"] > 1.2:
        lines.append(f"note: the machine's speed changed by {table['drift']:.2f} meanwhile: run it again")
    lines.append(
        f"written to {path}: 'skerry profile measure --from {path}' makes a device profile of it"
        if path
        else "--out FILE keeps the table"
    )
    return "\n".join(lines)
