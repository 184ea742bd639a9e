"""A model of 34 MB: the processes that hold it, against a process that loads it the plain way.

As in `memory`, the daemon is judged at rest.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from ..children import Child
from ..device import Device
from ..gates import Figure
from ..processes import memory_of_all, tree
from ..servers import oip_binary, ours, raw_answer
from ..spread import ratios, spread
from ..world import World

_MB = 1e6
_OPTIONS = ("--objective", "ram", "--max-drop", "0.001pt", "--max-slowdown", "0")
"""Without loss: a quantized model would be another one. What mapping costs in time is in the detail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    devices: list[Device]
    times: list[float]
    """p50 in ms of each, and of the plain session beside it."""
    plain_times: list[float]
    plain: list[float]
    """MB."""
    early: list[float]
    end: ExitStack


def prepare(world: World) -> None:
    model, bundle = world.model("large"), world.bundle("large", "1.0.0", *_OPTIONS)
    requests = world.pick(100, 300)
    ready = Prepared(
        devices=[], times=[], plain_times=[], plain=[], early=[],
        end=world.stack.enter_context(ExitStack()),
    )  # fmt: skip
    for _ in range(world.pick(2, 4)):
        with Child("raw", str(model.path), str(model.data), "default") as raw:
            wanted = raw_answer(raw)
            ready.plain_times.append(raw.ask(do="latency", count=requests)["p50"] / 1000)
            ready.plain.append(raw.ask(do="memory")["unevictable"] / _MB)
        device = ready.end.enter_context(world.device(bundle))
        device.start()
        request = oip_binary("large", "x", model.rows[:1])
        with ours(device.socket_of("large"), "skerry", request) as server:
            server.check(wanted, 1e-3)
            ready.times.append(server.p50(requests) / 1000)
        ready.early.append(_engine_mb(device))
        ready.devices.append(device)
    world.prepared["large"] = ready


def measure(world: World) -> dict[str, Figure]:
    ready: Prepared = world.prepared["large"]
    mine, whole, variant = [], [], ""
    with ready.end:
        for device in ready.devices:
            device.wait_at_rest()
            variant = device.status()["models"]["large"]["active"]["variant"]
            mine.append(_engine_mb(device))
            whole.append(memory_of_all(tree(device.pid)).unevictable / _MB)
    detail = (
        f"{spread(mine).median:.1f} against {spread(ready.plain).median:.1f} MB (with the agent"
        f" {spread(whole).median:.1f}; in the minute before {spread(ready.early).median:.1f} without);"
        f" variant {variant}; p50 {spread(ready.times).median:.2f} by the socket against"
        f" {spread(ready.plain_times).median:.2f} ms"
    )
    return {"large-model": ratios(mine, ready.plain).figure(detail)}


def _engine_mb(device: Device) -> float:
    """Of all processes but the agent."""
    return memory_of_all(pid for pid in tree(device.pid) if pid != device.pid).unevictable / _MB
