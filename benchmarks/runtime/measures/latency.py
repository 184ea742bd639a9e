"""One client, one request after the other: the daemon, raw ONNX Runtime and FastAPI in turns."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import numpy as np

from ..children import Child
from ..device import CommandError, Device
from ..gates import Figure
from ..servers import TOLERANCE, fastapi, oip_binary, oip_json, ours, raw_answer
from ..spread import Spread, differences, in_turns, ratios, spread
from ..world import World


def measure(world: World) -> dict[str, Figure]:
    bundles = {name: world.bundle(name) for name in ("digits", "conv")}
    rounds, count = world.pick(7, 21), world.pick(400, 1500)
    with ExitStack() as stack:
        device = stack.enter_context(world.device(*bundles.values()))
        device.start()
        found = _digits(world, device, stack, rounds, count)
        found |= _conv(world, device, stack, rounds, count)
    return found


def _digits(world: World, device: Device, stack: ExitStack, rounds: int, count: int) -> dict[str, Figure]:
    model, file = world.model("digits"), device.served_file("digits", world.workshop, world.bundle("digits"))
    row, path = model.rows[:1], device.socket_of("digits")
    raw = stack.enter_context(Child("raw", str(file), str(model.data)))
    servers = {
        "ours": ours(path, "skerry", oip_json("digits", "pixels", row)),
        "fastapi": fastapi(file, row),
        "fast": fastapi(file, row, fast=True),
    }
    wanted = raw_answer(raw)
    for server in servers.values():
        stack.enter_context(server)
        server.check(wanted)
        server.p50(count)  # warm
    sides = {name: partial(server.p50, count) for name, server in servers.items()}
    sides["raw"] = partial(_raw_p50, raw, count)
    shared = stack.enter_context(Child("shared", path, str(model.data)))
    if not np.allclose(raw_answer(shared), wanted, rtol=0, atol=TOLERANCE):
        raise CommandError(f"the shared-memory client answers {raw_answer(shared)!r}, raw ORT {wanted!r}")
    sides["shared"] = partial(_raw_p50, shared, count)
    times = in_turns(rounds, sides)
    middle = {name: spread(values) for name, values in times.items()}
    return {
        "mlp-raw": ratios(times["ours"], times["raw"]).figure(_us(middle["ours"], middle["raw"])),
        "mlp-fastapi": ratios(times["ours"], times["fastapi"]).figure(_us(middle["ours"], middle["fastapi"])),
        "mlp-fastapi-fast": ratios(times["ours"], times["fast"]).figure(_us(middle["ours"], middle["fast"])),
        "shared": differences(times["shared"], times["raw"]).figure(_us(middle["shared"], middle["raw"])),
    }


def _conv(world: World, device: Device, stack: ExitStack, rounds: int, count: int) -> dict[str, Figure]:
    model, file = world.model("conv"), device.served_file("conv", world.workshop, world.bundle("conv"))
    raw = stack.enter_context(Child("raw", str(file), str(model.data)))
    server = ours(device.socket_of("conv"), "skerry", oip_binary("conv", "pixels", model.rows[:1]))
    stack.enter_context(server)
    server.check(raw_answer(raw))
    server.p50(count)
    times = in_turns(rounds, {"ours": partial(server.p50, count), "raw": partial(_raw_p50, raw, count)})
    detail = _us(spread(times["ours"]), spread(times["raw"]))
    return {"conv-raw": ratios(times["ours"], times["raw"]).figure(detail)}


def _raw_p50(child: Child, count: int) -> float:
    return float(child.ask(do="latency", count=count)["p50"])


def _us(ours: Spread, theirs: Spread) -> str:
    return f"{ours.median:.1f} against {theirs.median:.1f} us"
