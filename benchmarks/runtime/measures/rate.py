"""Eight clients at once: how many requests a second each server answers."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from ..children import Child
from ..gates import Figure
from ..servers import Server, bentoml, fastapi, mlserver, oip_json, ours, raw_answer
from ..spread import in_turns, ratios, spread
from ..world import World

CONNECTIONS = 8


def measure(world: World) -> dict[str, Figure]:
    model, bundle = world.model("digits"), world.bundle("digits")
    row, seconds = model.rows[:1], world.pick(2, 4)
    client_cpu: dict[str, list[float]] = {}

    def rate(name: str, server: Server) -> float:
        found = server.rate(CONNECTIONS, seconds)
        client_cpu.setdefault(name, []).append(found["client_cpu"])
        return float(found["per_second"])

    with ExitStack() as stack:
        device = stack.enter_context(world.device(bundle))
        device.start()
        file = device.served_file("digits", world.workshop, bundle)
        wanted = raw_answer(stack.enter_context(Child("raw", str(file), str(model.data))))
        servers = {
            "ours": ours(device.socket_of("digits"), "skerry", oip_json("digits", "pixels", row)),
            "fastapi": fastapi(file, row),
            "mlserver": mlserver(file, "pixels", row, world.folder / "mlserver"),
            "bentoml": bentoml(file, row, world.folder / "bentoml"),
        }
        for server in servers.values():
            stack.enter_context(server)
            server.check(wanted)
            server.rate(CONNECTIONS, 1.0)  # warm
        rates = in_turns(
            world.pick(3, 7), {name: partial(rate, name, server) for name, server in servers.items()}
        )
    mine = spread(rates["ours"]).median
    busy = f"load generator {spread(client_cpu['ours']).median:.0%} of a core"
    return {
        f"rate-{name}": ratios(rates["ours"], rates[name]).figure(
            f"{mine:,.0f} against {spread(rates[name]).median:,.0f} a second; {busy}"
        )
        for name in ("mlserver", "bentoml", "fastapi")
    }
