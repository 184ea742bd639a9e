"""Ten inferences a second: processor time of the daemon, and of ONNX Runtime with two spinning threads."""

from __future__ import annotations

import time
from functools import partial

from ..children import Child
from ..gates import Figure
from ..processes import cpu_seconds, tree_seconds
from ..servers import Server, oip_binary, ours
from ..spread import in_turns, ratios, spread
from ..world import World

PER_SECOND = 10


def measure(world: World) -> dict[str, Figure]:
    model, bundle = world.model("conv"), world.bundle("conv")
    seconds, rounds = world.pick(10, 15), world.pick(2, 4)
    agents: list[float] = []
    with world.device(bundle) as device:
        device.start()
        file = device.served_file("conv", world.workshop, bundle)
        request = oip_binary("conv", "pixels", model.rows[:1])
        with (
            Child("raw", str(file), str(model.data), "default") as raw,
            ours(device.socket_of("conv"), "skerry", request) as server,
        ):
            server.p50(100)
            raw.ask(do="latency", count=100)
            time.sleep(1.0)  # the last spinning ends
            found = in_turns(
                rounds,
                {
                    "ours": partial(_ours, server, device.pid, seconds, agents),
                    "raw": partial(_raw, raw, seconds),
                },
            )
    mine, theirs = spread(found["ours"]).median, spread(found["raw"]).median
    detail = (
        f"{mine:.2%} against {theirs:.1%} of a core, {rounds} x {seconds} s;"
        f" the agent alone {spread(agents).median:.2%}"
    )
    return {"idle-cpu": ratios(found["ours"], found["raw"]).figure(detail)}


def _ours(server: Server, daemon: int, seconds: float, agents: list[float]) -> float:
    """Share of a core of the whole tree; that of the agent alone goes to ``agents``."""
    begin, before, agent = time.monotonic(), tree_seconds(daemon), cpu_seconds(daemon)
    answer = server.client.ask(
        do="paced", requests=[server.request], per_second=PER_SECOND, until=begin + seconds
    )
    used, passed = tree_seconds(daemon) - before, time.monotonic() - begin
    if answer["failed"]:
        raise ValueError(f"requests failed: {answer['messages']}")
    agents.append((cpu_seconds(daemon) - agent) / passed)
    return used / passed


def _raw(raw: Child, seconds: float) -> float:
    answer = raw.ask(do="paced", per_second=PER_SECOND, seconds=seconds)
    return float(answer["cpu"] / answer["seconds"])
