"""Blocks of blobs for devices that pull them over MQTT.

Guarantees: only blobs of published bundles leave; a request is at most `MAX_COUNT` blocks of `MAX_BLOCK`
bytes; every device has its own short queue and its own rate, so that none can starve the others; what is
refused is answered with the reason, what is flooded is dropped and counted.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from skerry_contract.errors import InputError, MessageError, SkerryError
from skerry_contract.frames import BlockFrame
from skerry_contract.limits import KIB, MIB
from skerry_contract.messages import BlockRequest, ErrorReport, decode, encode
from skerry_contract.topics import Down

from .mqtt import Publisher

MAX_BLOCK: Final = 64 * KIB
MAX_COUNT: Final = 16
QUEUE: Final = 16
"""Requests of one device that may wait; a device asks again for what it did not get."""
RATE: Final = 16 * MIB
"""Bytes a second, a device."""
_REFUSAL_BYTES: Final = 16 * KIB
"""What a refused request costs of the rate."""

ReadBlock = Callable[[str, int, int], bytes]


@dataclass(slots=True)
class _Lane:
    """The requests of one device and when the next may be answered."""

    requests: deque[BlockRequest] = field(default_factory=deque)
    free_at: float = 0.0


class BlockServer:
    """A thread that answers block requests, the longest-waiting device first."""

    def __init__(self, read_block: ReadBlock, publisher: Publisher, *, rate: int = RATE) -> None:
        self._read_block = read_block
        self._publisher = publisher
        self._rate = rate
        self._lanes: dict[str, _Lane] = {}
        self._due: list[tuple[float, str]] = []
        self._changed = threading.Condition()
        self._stopping = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="blocks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, device: str, payload: bytes) -> None:
        """Take a message of ``up/blk``; never blocks, never raises."""
        try:
            request = decode(payload, BlockRequest)
        except MessageError:
            self.dropped += 1
            return
        with self._changed:
            lane = self._lanes.setdefault(device, _Lane())
            if len(lane.requests) >= QUEUE or not 0 <= request.transfer < 2**64:
                self.dropped += 1
                return
            lane.requests.append(request)
            if len(lane.requests) == 1:
                heapq.heappush(self._due, (max(lane.free_at, monotonic()), device))
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopping and (not self._due or self._due[0][0] > monotonic()):
                    self._changed.wait(self._due[0][0] - monotonic() if self._due else None)
                if self._stopping:
                    return
                _, device = heapq.heappop(self._due)
                request = self._lanes[device].requests[0]
            sent = self._answer(device, request)
            with self._changed:
                lane = self._lanes[device]
                lane.requests.popleft()
                lane.free_at = max(lane.free_at, monotonic()) + sent / self._rate
                if lane.requests:
                    heapq.heappush(self._due, (lane.free_at, device))
                self._forget_idle()

    def _answer(self, device: str, request: BlockRequest) -> int:
        try:
            return sum(
                self._send(device, BlockFrame(transfer=request.transfer, offset=offset, data=data))
                for offset, data in self._blocks(request)
            )
        except SkerryError as error:
            reason = encode(ErrorReport.of(error))
            offset = request.offset if 0 <= request.offset < 2**64 else 0
            self._send(
                device, BlockFrame(transfer=request.transfer, offset=offset, data=reason, is_error=True)
            )
            return _REFUSAL_BYTES

    def _blocks(self, request: BlockRequest) -> list[tuple[int, bytes]]:
        """Offsets and bytes; the last block of a blob is shorter. Raises `SkerryError`."""
        if not (
            1 <= request.block <= MAX_BLOCK
            and 1 <= request.count <= MAX_COUNT
            and 0 <= request.offset < 2**62
        ):
            raise InputError(
                f"{request.count} blocks of {request.block} bytes at {request.offset} cannot be asked for",
                hint=f"Ask for 1 to {MAX_COUNT} blocks of 1 to {MAX_BLOCK} bytes.",
            )
        data = self._read_block(request.digest, request.offset, request.block * request.count)
        if not data:
            raise InputError(f"offset {request.offset} is behind the end of {request.digest}")
        return [
            (request.offset + start, data[start : start + request.block])
            for start in range(0, len(data), request.block)
        ]

    def _send(self, device: str, frame: BlockFrame) -> int:
        self._publisher.publish(device, Down.BLOCK, frame.encode(), qos=0)
        return len(frame.data)

    def _forget_idle(self) -> None:
        """Lanes are made by whoever asks, so they go when they hold neither requests nor a debt."""
        if len(self._lanes) > 1000:
            now = monotonic()
            self._lanes = {d: lane for d, lane in self._lanes.items() if lane.requests or lane.free_at > now}
