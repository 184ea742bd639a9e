"""Blocks over MQTT: published blobs only, bounded in every direction."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.fleet.fleet_harness import Fleet
from tests.fleet.mqtt_peer import WAIT_S

from skerry_contract.digests import Digest, digest_of
from skerry_contract.frames import BlockFrame
from skerry_contract.messages import BlockRequest, ErrorReport, decode, encode
from skerry_contract.topics import Down
from skerry_fleet.blocks import MAX_BLOCK, MAX_COUNT, QUEUE, BlockServer


@dataclass
class Wire:
    """Keeps what is published."""

    frames: queue.Queue[tuple[str, BlockFrame]] = field(default_factory=queue.Queue)

    def publish(self, device: str, channel: Down, payload: bytes, *, qos: int = 1, expiry_s: int = 0) -> None:
        assert (channel, qos) == (Down.BLOCK, 0)
        self.frames.put((device, BlockFrame.decode(payload)))

    def next(self) -> tuple[str, BlockFrame]:
        return self.frames.get(timeout=WAIT_S)


MODEL = b"model digits 1.0.0"


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def server(fleet: Fleet, wire: Wire) -> Iterator[BlockServer]:
    fleet.publish("1.0.0", 1)
    running = BlockServer(fleet.services.models.read_block, wire)
    running.start()
    yield running
    running.stop()


def request(**changes: Any) -> bytes:
    wanted = {"transfer": 7, "digest": digest_of(MODEL), "offset": 0, "block": 8, "count": 2, **changes}
    return encode(BlockRequest(**wanted))


def test_blocks_come_with_their_offsets_and_the_last_one_is_short(server: BlockServer, wire: Wire) -> None:
    server.submit("pi-1", request(count=4))
    frames = [wire.next() for _ in range(3)]
    assert [(device, f.transfer, f.offset, f.data) for device, f in frames] == [
        ("pi-1", 7, 0, MODEL[:8]),
        ("pi-1", 7, 8, MODEL[8:16]),
        ("pi-1", 7, 16, MODEL[16:]),
    ]


@pytest.mark.attack
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"digest": Digest("sha256:" + "0" * 64)}, "not_found"),
        ({"offset": len(MODEL)}, "input"),
        ({"offset": 2**63 - 1}, "input"),
        ({"block": MAX_BLOCK + 1}, "input"),
        ({"block": 0}, "input"),
        ({"count": MAX_COUNT + 1}, "input"),
        ({"count": 0}, "input"),
    ],
)
def test_what_cannot_be_had_is_answered_with_the_reason(
    server: BlockServer, wire: Wire, changes: dict[str, Any], code: str
) -> None:
    server.submit("pi-1", request(**changes))
    _, frame = wire.next()
    assert frame.is_error
    assert decode(frame.data, ErrorReport).code == code


@pytest.mark.attack
@pytest.mark.parametrize("payload", [b"", b"{}", b"\xff", request().replace(b":7,", b":-1,")])
def test_what_is_no_request_is_dropped_and_counted(server: BlockServer, wire: Wire, payload: bytes) -> None:
    server.submit("pi-1", payload)
    assert server.dropped == 1
    server.submit("pi-1", request(count=1))
    assert wire.next()[1].data == MODEL[:8]


@pytest.mark.attack
def test_one_device_cannot_starve_another(wire: Wire) -> None:
    gate = threading.Event()

    def slow_disk(_digest: str, _offset: int, size: int) -> bytes:
        assert gate.wait(WAIT_S)
        return bytes(size)

    server = BlockServer(slow_disk, wire, rate=1 << 40)
    server.start()
    for _ in range(10 * QUEUE):
        server.submit("greedy", request(count=1))
    server.submit("modest", request(count=1))
    assert server.dropped == 9 * QUEUE
    gate.set()
    order = [wire.next()[0] for _ in range(3)]
    server.stop()
    assert "modest" in order


@pytest.mark.attack
def test_the_rate_of_a_device_is_bounded(wire: Wire) -> None:
    server = BlockServer(lambda _digest, _offset, size: bytes(size), wire, rate=1000)
    server.start()
    for _ in range(3):
        server.submit("greedy", request(block=8, count=1))
    server.submit("greedy", request(block=60_000, count=1))
    server.submit("greedy", request(block=8, count=1))
    sizes = [len(wire.next()[1].data) for _ in range(4)]
    assert sizes == [8, 8, 8, 60_000]
    with pytest.raises(queue.Empty):
        # 60,000 bytes at 1,000 a second: the next one is a minute away.
        wire.frames.get(timeout=0.2)
    server.submit("modest", request(block=8, count=1))
    assert wire.next()[0] == "modest"
    server.stop()
