"""Versions change under a steady stream of requests: none may fail, and few may be slower than without.

A round is a quiet stretch and a stretch of the same kind and length in which a bundle is installed (verified,
tried in a process of its own, activated) and taken back again: two swaps. The rate is fixed, and a request
that waits behind another counts its wait.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from ..children import Child
from ..device import Device
from ..gates import Figure
from ..servers import oip_binary
from ..spread import quantile, ratios, spread
from ..world import World

CLIENTS = 2
PER_SECOND = 100.0
"""Of each client."""
_MARGIN_S = 0.3
_SHARE = 0.99


def prepare(world: World) -> None:
    """Start the first version: it passes its probation while others are measured."""
    end = world.stack.enter_context(ExitStack())
    device = end.enter_context(world.device(world.bundle("conv")))
    device.start()
    with Child("client", "unix", device.socket_of("conv")) as client:
        request = oip_binary("conv", "pixels", world.model("conv").rows[:1])
        client.ask(do="latency", request=request, count=100)
    world.prepared["swap"] = device, end


def measure(world: World) -> dict[str, Figure]:
    rounds = world.pick(3, 6)
    request = oip_binary("conv", "pixels", world.model("conv").rows[:1])
    quiet: list[float] = []
    busy: list[float] = []
    failed = swaps = reconnected = 0
    messages: set[str] = set()
    device, end = world.prepared["swap"]
    with end:
        path = device.socket_of("conv")
        clients = [end.enter_context(Child("client", "unix", path)) for _ in range(CLIENTS)]
        first, *versions = [world.bundle("conv", f"1.{number}.0") for number in range(1, rounds + 2)]
        device.wait_confirmed("conv")
        seconds = _swap(device, first) + 2 * _MARGIN_S  # warm, and how long it takes
        for bundle in versions:
            for swapping in (False, True):
                until = time.monotonic() + seconds
                for client in clients:
                    client.begin(do="paced", requests=[request], per_second=PER_SECOND, until=until)
                if swapping:
                    time.sleep(_MARGIN_S)
                    _swap(device, bundle)
                    swaps += 2
                answers = [client.answer() for client in clients]
                times = [one for answer in answers for one in answer["times"]]
                (busy if swapping else quiet).append(quantile(times, _SHARE))
                if swapping:
                    failed += sum(answer["failed"] for answer in answers)
                    reconnected += sum(answer["reconnected"] for answer in answers)
                    messages.update(text for answer in answers for text in answer["messages"])
    detail = f"{swaps} swaps, {reconnected} connections opened again"
    return {
        "swap-failed": Figure(value=failed, detail="; ".join([detail, *sorted(messages)[:2]])),
        "swap-p99": ratios(busy, quiet).figure(
            f"{spread(busy).median:.0f} against {spread(quiet).median:.0f} us; {seconds:.1f} s each"
        ),
    }


def _swap(device: Device, bundle: Path) -> float:
    """Install a version and take it back; the seconds that it took."""
    begin = time.monotonic()
    device.install(bundle)
    device.runtime("rollback", "conv", "--json")
    return time.monotonic() - begin
