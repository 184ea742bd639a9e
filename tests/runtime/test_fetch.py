"""Downloads from a peer that may be slow, wrong or hostile."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry_contract.digests import digest_of
from skerry_contract.errors import (
    BundleFormatError,
    ConflictError,
    NotFoundError,
    StorageError,
    TransferError,
)
from skerry_contract.frames import BlockFrame
from skerry_contract.manifest import BlobRef
from skerry_contract.messages import BlockRequest, ErrorReport, encode
from skerry_runtime.agent.fetch import Fetcher, FetchLimits
from skerry_runtime.agent.store import Store

BLOCK = 1024
LIMITS = FetchLimits(
    block_bytes=BLOCK, window=4, stall_seconds=0.3, stalls=3, patience_seconds=0.2, backoff_seconds=0.01,
    journal_blocks=4, strays=50,
)  # fmt: skip
BLOB = os.urandom(20 * BLOCK + 100)
REF = BlobRef(digest=digest_of(BLOB), size=len(BLOB))

Behaviour = Callable[["Peer", BlockRequest, int], list[BlockFrame]]
"""What the peer sends for one block of a request."""


class Peer:
    """The other end: answers in a thread of its own, by a behaviour that a test chooses."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests: list[BlockRequest] = []
        self.sent: list[int] = []
        self.fetcher: Fetcher
        self.connected = True

    def ask(self, request: BlockRequest) -> bool:
        if self.connected:
            self.requests.append(request)
            threading.Thread(target=self._answer, args=(request,), daemon=True).start()
        return self.connected

    def asked(self) -> list[int]:
        """Every block that was asked for, in order."""
        return [r.offset // r.block + k for r in self.requests for k in range(r.count)]

    def _answer(self, request: BlockRequest) -> None:
        for k in range(request.count):
            for frame in self.behaviour(self, request, request.offset + k * request.block):
                self.sent.append(frame.offset // BLOCK)
                self.fetcher.deliver(frame.encode())


def honest(peer: Peer, request: BlockRequest, offset: int) -> list[BlockFrame]:
    return [BlockFrame(transfer=request.transfer, offset=offset, data=BLOB[offset : offset + BLOCK])]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


Start = Callable[[Behaviour], Peer]


@pytest.fixture
def start(store: Store) -> Start:
    """Make a fetcher that talks to a peer."""

    def begin(behaviour: Behaviour) -> Peer:
        peer = Peer(behaviour)
        peer.fetcher = Fetcher(store, peer.ask, LIMITS)
        peer.fetcher.set_online(True)
        return peer

    return begin


def fetch(peer: Peer, *refs: BlobRef) -> list[tuple[int, int]]:
    progress: list[tuple[int, int]] = []
    peer.fetcher.fetch(
        refs or (REF,),
        cancelled=threading.Event(),
        progress=lambda done, total: progress.append((done, total)),
    )
    return progress


def test_a_blob_arrives_and_progress_is_told(start: Start, store: Store) -> None:
    peer = start(honest)
    progress = fetch(peer)
    assert store.read(REF.digest, len(BLOB)) == BLOB
    assert progress[0] == (0, len(BLOB))
    assert progress[-1] == (len(BLOB), len(BLOB))
    assert progress == sorted(progress)
    assert sorted(peer.asked()) == list(range(21))
    assert {path.name for path in store.folder.iterdir()} == {store.path(REF.digest).name}


def test_never_more_than_the_window_is_asked_for(start: Start) -> None:
    peer = start(honest)
    fetch(peer)
    assert max(request.count for request in peer.requests) <= LIMITS.window


def test_what_is_in_the_store_is_not_fetched(start: Start, store: Store) -> None:
    store.add(BLOB)
    peer = start(honest)
    fetch(peer)
    assert peer.requests == []


def test_an_empty_blob(start: Start, store: Store) -> None:
    fetch(start(honest), BlobRef(digest=digest_of(b""), size=0))
    assert store.read(digest_of(b""), 1) == b""


def test_blocks_may_come_twice_and_in_any_order(start: Start, store: Store) -> None:
    held: list[BlockFrame] = []

    def shuffled(peer: Peer, request: BlockRequest, offset: int) -> list[BlockFrame]:
        frame = honest(peer, request, offset)[0]
        held.append(frame)
        return [*reversed(held[-3:]), frame]

    fetch(start(shuffled))
    assert store.read(REF.digest, len(BLOB)) == BLOB


def test_lost_blocks_are_asked_for_again(start: Start, store: Store) -> None:
    seen: set[int] = set()

    def forgetful(peer: Peer, request: BlockRequest, offset: int) -> list[BlockFrame]:
        if offset in seen or offset // BLOCK % 3:
            return honest(peer, request, offset)
        seen.add(offset)
        return []

    peer = start(forgetful)
    fetch(peer)
    assert store.read(REF.digest, len(BLOB)) == BLOB
    assert len(peer.asked()) > 21


@pytest.mark.attack
def test_b11_blocks_that_lie_outside_or_have_another_length_are_dropped(start: Start, store: Store) -> None:
    def hostile(peer: Peer, request: BlockRequest, offset: int) -> list[BlockFrame]:
        def frame(at: int, data: bytes, transfer: int = request.transfer) -> BlockFrame:
            return BlockFrame(transfer=transfer, offset=at, data=data)

        right = honest(peer, request, offset)
        if offset:
            return right
        return [
            frame(1 << 40, bytes(BLOCK)),
            frame(offset + 1, bytes(BLOCK)),
            frame(offset, bytes(BLOCK + 1)),
            frame(offset, bytes(BLOCK - 1)),
            frame(offset, b""),
            frame(20 * BLOCK, bytes(BLOCK)),
            frame(offset, bytes(BLOCK), request.transfer ^ 1),
            *right,
        ]

    peer = start(hostile)
    peer.fetcher.deliver(b"nobody fetches now")
    fetch(peer)
    assert store.read(REF.digest, len(BLOB)) == BLOB


@pytest.mark.attack
def test_b11_an_endless_peer_is_given_up_and_the_disk_holds_no_more_than_announced(
    start: Start, store: Store
) -> None:
    def endless(peer: Peer, request: BlockRequest, offset: int) -> list[BlockFrame]:
        return [BlockFrame(transfer=request.transfer, offset=offset + (1 << 30), data=bytes(BLOCK))] * 40

    with pytest.raises(TransferError):
        fetch(start(endless))
    assert sum(path.stat().st_size for path in store.folder.iterdir()) <= len(BLOB) + 100


@pytest.mark.attack
def test_b11_a_blob_with_another_digest_is_refused_and_removed(start: Start, store: Store) -> None:
    def altering(peer: Peer, request: BlockRequest, offset: int) -> list[BlockFrame]:
        size = min(BLOCK, len(BLOB) - offset)
        return [BlockFrame(transfer=request.transfer, offset=offset, data=bytes(size))]

    with pytest.raises(BundleFormatError, match="another digest, twice"):
        fetch(start(altering))
    assert list(store.folder.iterdir()) == []


def test_one_wrong_block_is_helped_by_a_second_attempt(start: Start, store: Store) -> None:
    wrong = [5 * BLOCK]

    def once_wrong(peer: Peer, request: BlockRequest, offset: int) -> list[BlockFrame]:
        if offset in wrong:
            wrong.clear()
            return [BlockFrame(transfer=request.transfer, offset=offset, data=bytes(BLOCK))]
        return honest(peer, request, offset)

    fetch(start(once_wrong))
    assert store.read(REF.digest, len(BLOB)) == BLOB


def test_a_stalled_transfer_ends_and_goes_on_where_it_stopped(start: Start, store: Store) -> None:
    def silent_after_ten(peer: Peer, request: BlockRequest, offset: int) -> list[BlockFrame]:
        return honest(peer, request, offset) if offset < 10 * BLOCK else []

    with pytest.raises(TransferError, match="stalled 3 times"):
        fetch(start(silent_after_ten))
    again = start(honest)
    progress = fetch(again)
    assert store.read(REF.digest, len(BLOB)) == BLOB
    assert progress[0] == (10 * BLOCK, len(BLOB))
    assert sorted(again.asked()) == list(range(10, 21))


@pytest.mark.parametrize("journal", [b"", b"SKJ1", b"x" * 19, os.urandom(16)])
def test_a_journal_that_cannot_be_read_costs_only_time(start: Start, store: Store, journal: bytes) -> None:
    store.part(REF.digest).write_bytes(os.urandom(len(BLOB)))
    store.journal(REF.digest).write_bytes(journal)
    fetch(start(honest))
    assert store.read(REF.digest, len(BLOB)) == BLOB


def test_a_part_that_lies_is_found_by_the_digest(start: Start, store: Store) -> None:
    def half(peer: Peer, request: BlockRequest, offset: int) -> list[BlockFrame]:
        return honest(peer, request, offset) if offset < 10 * BLOCK else []

    with pytest.raises(TransferError):
        fetch(start(half))
    part = store.part(REF.digest)
    part.write_bytes(bytes(4 * BLOCK) + part.read_bytes()[4 * BLOCK :])
    fetch(start(honest))
    assert store.read(REF.digest, len(BLOB)) == BLOB


def test_without_a_connection_it_waits_and_that_is_no_stall(start: Start, store: Store) -> None:
    peer = start(honest)
    peer.connected = False
    peer.fetcher.set_online(False)

    def come_back() -> None:
        peer.connected = True
        peer.fetcher.set_online(True)

    back = threading.Timer(4 * LIMITS.stalls * LIMITS.stall_seconds, come_back)
    back.start()
    fetch(peer)
    back.join()
    assert store.read(REF.digest, len(BLOB)) == BLOB


def test_a_refusal_of_the_fleet_ends_it_at_once(start: Start) -> None:
    def refusing(peer: Peer, request: BlockRequest, offset: int) -> list[BlockFrame]:
        report = ErrorReport(code="not_found", message="no such blob", hint="publish it")
        return [BlockFrame(transfer=request.transfer, offset=offset, data=encode(report), is_error=True)]

    peer = start(refusing)
    with pytest.raises(NotFoundError, match="no such blob"):
        fetch(peer)
    assert len(peer.requests) == 1


def test_a_disk_without_space_is_said_before_anything_is_asked_for(start: Start) -> None:
    peer = start(honest)
    with pytest.raises(StorageError, match="the install needs"):
        fetch(peer, BlobRef(digest=digest_of(b"huge"), size=1 << 55))
    assert peer.requests == []


def test_cancelling_ends_it_and_keeps_what_came(start: Start, store: Store) -> None:
    cancelled = threading.Event()

    def cancelling(peer: Peer, request: BlockRequest, offset: int) -> list[BlockFrame]:
        if offset == 10 * BLOCK:
            cancelled.set()
        return honest(peer, request, offset) if offset < 10 * BLOCK else []

    peer = start(cancelling)
    with pytest.raises(ConflictError):
        peer.fetcher.fetch((REF,), cancelled=cancelled)
    assert store.journal(REF.digest).exists()
