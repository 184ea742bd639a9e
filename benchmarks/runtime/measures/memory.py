"""The whole daemon with a small model against one process that has the same libraries and nothing of ours.

Judged is the daemon at rest, which is how it spends its years: some time after the last start of a worker the
process that forks them goes. What it takes in the minute before stands in the detail.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from ..children import Child
from ..device import Broker, Device
from ..gates import Figure
from ..processes import memory_of, memory_of_all, tree
from ..servers import oip_json, ours
from ..spread import ratios, spread
from ..world import World

_MB = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Devices that have answered requests, and what they took right after that."""

    broker: Broker
    devices: list[Device]
    early: list[float]
    requests: int
    end: ExitStack


def prepare(world: World) -> None:
    model, bundle, requests = world.model("digits"), world.bundle("digits"), world.pick(500, 2000)
    end = world.stack.enter_context(ExitStack())
    broker = end.enter_context(Broker(world.folder))
    devices, early = [], []
    for _ in range(world.pick(2, 5)):
        device = end.enter_context(world.device(bundle, broker=broker.port))
        device.start()
        request = oip_json("digits", "pixels", model.rows[:1])
        with ours(device.socket_of("digits"), "skerry", request) as server:
            server.p50(requests)
        early.append(memory_of_all(tree(device.pid)).unevictable / _MB)
        devices.append(device)
    world.prepared["memory"] = Prepared(
        broker=broker, devices=devices, early=early, requests=requests, end=end
    )


def measure(world: World) -> dict[str, Figure]:
    ready: Prepared = world.prepared["memory"]
    model, parts = world.model("digits"), ""
    mine, floors, agents = [], [], []
    with ready.end:
        for number, device in enumerate(ready.devices):
            device.wait_at_rest()
            each = [memory_of(pid) for pid in tree(device.pid)]
            parts = " + ".join(f"{part.unevictable / _MB:.1f}" for part in each)
            mine.append(sum(part.unevictable for part in each) / _MB)
            agents.append(each[0].rss / _MB)
            file = device.served_file("digits", world.workshop, world.bundle("digits"))
            with Child("raw", str(file), str(model.data)) as raw:
                database = str(world.folder / f"floor-{number}.db")
                raw.ask(do="become_floor", broker=ready.broker.port, database=database)
                raw.ask(do="latency", count=ready.requests)
                floors.append(raw.ask(do="memory")["unevictable"] / _MB)
    detail = (
        f"{spread(mine).median:.1f} against {spread(floors).median:.1f} MB;"
        f" by process, the agent first: {parts}; in the minute before {spread(ready.early).median:.1f}"
    )
    return {
        "memory": ratios(mine, floors).figure(detail),
        "agent-rss": spread(agents).figure("connected to a broker"),
    }
