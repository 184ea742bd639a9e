"""What children do to the models of a device: each deed is made ready first, and then done under torture."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from tests.torture.board import Board
from tests.torture.desk import ENGINES, HARDWARE, Desk, published
from tests.torture.inventory import leftovers
from tests.torture.noted import note_slots
from tests.torture.patches import patch
from tests.torture.players import Play
from tests.torture.release import NAME, Release, load_release

from skerry_contract.errors import NotFoundError, SkerryError, SlotError
from skerry_contract.messages import ErrorReport
from skerry_runtime.agent import machine, offline
from skerry_runtime.agent import store as store_module
from skerry_runtime.agent.record import read_record
from skerry_runtime.agent.slots import ModelSlots
from skerry_runtime.agent.store import Store
from skerry_runtime.config import DeviceConfig, ServeConfig, TrustConfig

Deed = Callable[[], dict[str, Any]]
"""Does it; returns what it has to say at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a child is given; plain JSON."""

    deed: str
    data: str = ""
    releases: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.data)


def _desk(order: Order, board: Board, play: Play | None = None) -> Desk:
    note_slots(board)
    return Desk(order.folder, Path(order.releases), play)


def _end(desk: Desk, act: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Act, and say how the device stands then."""
    refused: list[str] = []
    try:
        act()
    except SkerryError as error:
        refused.append(error.code)
    desk.loop.pass_time()
    return {"answers": desk.answers(), "faults": desk.loop.faults, "errors": [*refused, *desk.error_codes()]}


def _release(order: Order, number: int | None = None) -> Release:
    return load_release(Path(order.releases), number or int(order.arguments["release"]))


def _file(order: Order, number: int | None = None) -> BinaryIO:
    """Left open: a person's file lies on another disk, and its end is nobody's business here."""
    return open(_release(order, number).file, "rb")


def install_file(order: Order, board: Board) -> Deed:
    """A bundle file becomes the generation on trial; what answered before is warm."""
    desk = _desk(order, board, Play(silent=True))
    desk.start()
    file = _file(order)

    def run() -> dict[str, Any]:
        return _end(desk, lambda: desk.install_file(file))

    return run


def install_order(order: Order, board: Board) -> Deed:
    """The same, pulled from the fleet."""
    desk = _desk(order, board, Play(silent=True))
    desk.start()
    release = _release(order)

    def run() -> dict[str, Any]:
        return _end(desk, lambda: desk.order(release))

    return run


def start(order: Order, board: Board) -> Deed:
    """The daemon starts: recovery, and what is on trial is confirmed, or condemned (``canary_ok`` false)."""

    def run() -> dict[str, Any]:
        desk = _desk(order, board, Play(canary_ok=order.arguments.get("canary_ok", True)))
        desk.start()
        return _end(desk)

    return run


def roll_back(order: Order, board: Board) -> Deed:
    """A person goes back to the last good one."""
    desk = _desk(order, board)
    desk.start()

    def run() -> dict[str, Any]:
        return _end(desk, desk.roll_back)

    return run


def collect(order: Order, board: Board) -> Deed:
    """Generations and blobs that nothing needs go."""
    note_slots(board)

    def run() -> dict[str, Any]:
        store = Store(order.folder / "store")
        ModelSlots(order.folder / "models" / NAME, store).collect()
        store.collect(())
        return {}

    return run


def offline_install(order: Order, board: Board) -> Deed:
    """``skerry-runtime install`` without a daemon."""
    config = _without_daemon(order, board)
    file = _file(order)

    def run() -> dict[str, Any]:
        offline.install(config, file, lambda step: None)
        return {}

    return run


def offline_roll_back(order: Order, board: Board) -> Deed:
    """``skerry-runtime rollback`` without a daemon."""
    config = _without_daemon(order, board)

    def run() -> dict[str, Any]:
        offline.roll_back(config, NAME)
        return {}

    return run


def _without_daemon(order: Order, board: Board) -> DeviceConfig:
    note_slots(board)
    # The self-test is a process of its own and writes nothing.
    patch(offline, "_self_test", lambda generation, machine_bytes: None)
    patch(machine, "hardware", lambda device_class: HARDWARE)
    patch(machine, "engines", lambda: ENGINES)
    return DeviceConfig(
        device="desk",
        org="torture",
        data_dir=order.folder,
        serve=ServeConfig(socket=order.folder / "run" / "skerry.sock"),
        trust=TrustConfig(engineers=(published(Path(order.releases))[0],)),
    )


def no_reserve(order: Order) -> None:
    """The early look at the free space is off: the disk itself must refuse."""
    if order.arguments.get("no_reserve"):
        patch(store_module, "RESERVE_BYTES", -(1 << 40))


def live(order: Order, board: Board) -> Deed:
    """A device's life until the power goes: installs that succeed and fail, rollbacks, restarts."""
    chance = random.Random(order.arguments["seed"])
    most = int(order.arguments["last"])

    def run() -> dict[str, Any]:
        desk = _desk(order, board)
        desk.start()
        errors: list[str] = []
        for _ in range(int(order.arguments.get("steps", 1 << 30))):
            move = chance.choice(("file", "file", "order", "order", "bad", "bad file", "back", "restart"))
            try:
                if move == "back":
                    desk.roll_back()
                elif move == "restart":
                    desk.model.stop()
                    desk.loop.run()
                    desk = _desk(order, board, Play(silent=chance.random() < 0.3))
                    desk.start()
                else:
                    answering = desk.answers() or 0
                    number = chance.randint(max(1, answering - 1), answering + 3)
                    if number > most:
                        break
                    desk.play.silent = chance.random() < 0.2
                    desk.play.canary_ok = not move.startswith("bad")
                    if move.endswith("file"):
                        desk.install_file(_file(order, number))
                    else:
                        desk.order(_release(order, number))
            except SkerryError as error:
                errors.append(error.code)
                if len(errors) > 400:
                    break
            desk.loop.run()
        return {**_end(desk), "codes": sorted(set(errors))}

    return run


def look(order: Order, board: Board) -> Deed:
    """The pointers as they lie there; nothing is changed."""

    def run() -> dict[str, Any]:
        model = order.folder / "models" / NAME
        return _pointers(model, order.folder) if model.is_dir() else {}

    return run


def examine(order: Order, board: Board) -> Deed:
    """A device comes back: it recovers, loads, answers the golden samples; and what it holds then."""

    def run() -> dict[str, Any]:
        desk = Desk(order.folder, Path(order.releases), Play(engine=True, silent=True))
        desk.start()
        found = _pointers(order.folder / "models" / NAME, order.folder)
        return {**found, "answers": desk.answers(), "faults": list(desk.loop.faults)}

    return run


def carry_on(order: Order, board: Board) -> Deed:
    """The next start and the next install work, the disk holds nothing that is of no use afterwards."""

    def run() -> dict[str, Any]:
        desk = Desk(order.folder, Path(order.releases), Play(engine=True))
        desk.start()
        desk.install_file(_file(order))
        slots = desk.model.slots
        current = slots.current()
        return {
            "answers": desk.answers(),
            "current": slots.load(current.gen).manifest.release if current else None,
            "state": read_record(slots.state / "update").state,
            "leftovers": leftovers(order.folder),
            "faults": list(desk.loop.faults),
            "errors": desk.error_codes(),
        }

    return run


def make_mess(order: Order, board: Board) -> Deed:
    """All that recovery has to tidy up at once: unfinished files, a rollback that was cut, a lost pointer."""

    def run() -> dict[str, Any]:
        desk = Desk(order.folder, Path(order.releases))
        desk.start()
        slots = desk.model.slots
        current = slots.current()
        assert current is not None
        leaving = slots.load(current.gen)
        (slots.gens / "77.tmp").mkdir()
        (slots.gens / "77.tmp" / "generation.json").write_bytes(b"{")
        (slots.state / "update.tmp").write_bytes(b"half")
        (slots.bad / "0.tmp").write_bytes(b"half")
        slots.set_pending(slots.load(current.previous))
        slots.quarantine(leaving.digest, ErrorReport(code="selftest", message="it crashed"), 0)
        for name in ("half", "more"):
            (order.folder / "store" / f"{name * 16}.part").write_bytes(b"half a download")
        return {}

    return run


def litter(order: Order, board: Board) -> Deed:
    """Work for the collection: two old generations, blobs that nothing links to, halves of downloads."""

    def run() -> dict[str, Any]:
        desk = Desk(order.folder, Path(order.releases))
        desk.start()
        store = Store(order.folder / "store")
        for number in range(3):
            digest = store.add(b"nobody wants this %d" % number)
            store.part(digest).write_bytes(b"half")
            store.journal(digest).write_bytes(b"journal")
        slots = desk.model.slots
        current = slots.current()
        assert current is not None
        good = slots.load(current.gen)
        signature = store.add((good.folder / "manifest.sig").read_bytes())
        for _ in range(2):
            slots.stage(good.manifest, signature, good.info)
        return {}

    return run


def _pointers(model: Path, data: Path) -> dict[str, Any]:
    slots = ModelSlots(model, Store(data / "store"))
    current, pending = slots.current(), slots.pending()
    return {
        "current": _release_of(slots, current.gen if current else 0),
        "previous": _release_of(slots, current.previous if current else 0),
        "pending": _release_of(slots, pending.gen if pending else 0),
        "floor": slots.floor(),
        "bad": sorted(f"sha256:{path.name}" for path in slots.bad.iterdir() if "." not in path.name),
        "state": read_record(slots.state / "update").state,
    }


def _release_of(slots: ModelSlots, number: int) -> int | None:
    try:
        return slots.load(number).manifest.release if number else None
    except (SlotError, NotFoundError):
        return None


MODEL_DEEDS: Final[dict[str, Callable[[Order, Board], Deed]]] = {
    deed.__name__: deed
    for deed in (
        install_file, install_order, start, roll_back, collect, offline_install, offline_roll_back, live,
        look, examine, carry_on, make_mess, litter,
    )
}  # fmt: skip
