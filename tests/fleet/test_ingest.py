"""Ingest: each row once, acknowledged after its commit, whatever is repeated, reordered, forged or killed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from tests import builders
from tests.fleet.fleet_harness import START_MS, Fleet
from tests.fleet.outbox_sender import Outbox, Receiver
from tests.waiting import wait_until

from skerry_contract.digests import Digest
from skerry_contract.errors import NotFoundError, StorageError
from skerry_contract.messages import (
    EngineInfo,
    Hardware,
    Hello,
    ModelReport,
    Phase,
    Presence,
    PresenceMessage,
    UpdateReport,
    encode,
)
from skerry_contract.monitoring import spec_hash
from skerry_contract.summary import CLOCK_NONE, Flags, merge
from skerry_contract.topics import Up
from skerry_fleet import cursors
from skerry_fleet.mqtt import Message
from skerry_fleet.telemetry.clocks import placed_at
from skerry_fleet.telemetry.specs import References

DAY_MS = 86_400_000


@pytest.fixture
def bundle(fleet: Fleet) -> Digest:
    return fleet.publish("1.0.0", 1)


@pytest.fixture
def receiver(fleet: Fleet) -> Receiver:
    fleet.enrol("pi-1", "pi-2", online=False)
    return Receiver(fleet)


@pytest.fixture
def outbox(bundle: Digest, receiver: Receiver) -> Outbox:
    return Outbox("pi-1", bundle)


def acknowledged(receiver: Receiver, outbox: Outbox) -> int | None:
    return receiver.wire.acknowledged.get((outbox.device, outbox.stream.hex()))


# --- once ---


def test_a_window_is_stored_and_then_acknowledged(receiver: Receiver, outbox: Outbox, bundle: Digest) -> None:
    receiver.take(outbox.telemetry(), outbox.telemetry())
    found = receiver.fleet.client.get("/v1/devices/pi-1/windows").json()["items"]
    assert [(w["first"], w["model"], w["version"], w["digest"]) for w in found] == [
        (2, "digits", "1.0.0", bundle),
        (1, "digits", "1.0.0", bundle),
    ]
    assert acknowledged(receiver, outbox) == 2
    assert receiver.wire.received == [1, 2]
    assert receiver.woken == 1


@pytest.mark.attack
def test_t1_q9_a_duplicate_is_acknowledged_and_not_stored(receiver: Receiver, outbox: Outbox) -> None:
    first, second = outbox.telemetry(), outbox.telemetry()
    receiver.take(first, first, second)
    receiver.take(second, first)
    assert receiver.stored() == [1, 2]
    assert acknowledged(receiver, outbox) == 2
    assert receiver.ingest.counts["duplicate"] == 3


@pytest.mark.attack
def test_t2_a_kill_between_commit_and_acknowledgement_loses_and_doubles_nothing(
    receiver: Receiver, outbox: Outbox
) -> None:
    messages = [outbox.telemetry(), outbox.events("update.staged"), outbox.telemetry()]
    receiver.ingest.process(messages)
    assert acknowledged(receiver, outbox) is None
    receiver.restarted()
    receiver.take(*messages)
    assert receiver.stored() == [1, 3]
    assert receiver.event_kinds("pi-1") == ["update.staged"]
    assert acknowledged(receiver, outbox) == 3


def test_a_kill_between_the_two_databases_doubles_no_event(
    receiver: Receiver, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [outbox.events("update.staged", "update.confirmed"), outbox.telemetry()]
    with monkeypatch.context() as patch:
        patch.setattr(receiver.ingest, "_commit_day", _full_disk)
        with pytest.raises(StorageError):
            receiver.ingest.process(messages)
    assert receiver.wire.received == []
    receiver.restarted()
    receiver.take(*messages)
    assert receiver.event_kinds("pi-1") == ["update.staged", "update.confirmed"]
    assert receiver.stored() == [2]
    assert acknowledged(receiver, outbox) == 2


def test_a_replay_after_midnight_doubles_nothing(receiver: Receiver, outbox: Outbox) -> None:
    messages = [outbox.telemetry(), outbox.telemetry()]
    receiver.take(*messages)
    receiver.fleet.clock.ms += DAY_MS
    receiver.restarted()
    receiver.take(*messages, outbox.telemetry())
    assert receiver.stored() == [1, 2, 3]
    assert len(receiver.fleet.services.days.days()) == 2


def test_a_server_clock_that_goes_back_doubles_nothing(receiver: Receiver, outbox: Outbox) -> None:
    messages = [outbox.telemetry()]
    receiver.take(*messages)
    receiver.fleet.clock.ms += 400 * DAY_MS
    messages.append(outbox.telemetry())
    receiver.take(*messages)
    receiver.fleet.clock.ms = START_MS
    receiver.restarted()
    receiver.take(*messages)
    assert receiver.stored() == [1, 2]


# --- last seen ---


def last_seen(fleet: Fleet, device: str) -> int | None:
    seen: int | None = fleet.client.get(f"/v1/devices/{device}").json()["device"]["last_seen_ms"]
    return seen


def test_windows_and_events_move_when_a_device_was_last_seen(receiver: Receiver, outbox: Outbox) -> None:
    fleet = receiver.fleet
    for message in (outbox.telemetry(), outbox.events("update.staged")):
        fleet.clock.sleep(60)
        receiver.take(message)
        fleet.clock.sleep(5)
        fleet.services.sightings.write()
        assert last_seen(fleet, "pi-1") == fleet.clock.ms - 5_000
    assert last_seen(fleet, "pi-2") is None


def test_a_sighting_never_goes_back_behind_a_report(receiver: Receiver, outbox: Outbox) -> None:
    fleet = receiver.fleet
    receiver.take(outbox.telemetry())
    fleet.clock.sleep(5)
    fleet.services.devices.record_report("pi-1", UpdateReport(revision=0, epoch=1, models={}))
    fleet.services.sightings.write()
    assert last_seen(fleet, "pi-1") == fleet.clock.ms


def test_sightings_are_written_in_one_transaction_and_none_without_news(
    receiver: Receiver, bundle: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = receiver.fleet
    write = Mock(wraps=fleet.services.db.write)
    senders = [Outbox("pi-1", bundle), Outbox("pi-2", bundle)]
    for _ in range(3):
        receiver.take(*[sender.telemetry() for sender in senders])
    monkeypatch.setattr(fleet.services.db, "write", write)
    fleet.services.sightings.write()
    fleet.services.sightings.write()
    assert write.call_count == 1
    assert last_seen(fleet, "pi-1") == last_seen(fleet, "pi-2") == fleet.clock.ms


def test_a_removed_device_is_not_seen_again(receiver: Receiver, outbox: Outbox) -> None:
    fleet = receiver.fleet
    receiver.take(outbox.telemetry())
    fleet.client.delete("/v1/devices/pi-1")
    fleet.services.sightings.write()
    fleet.client.post("/v1/devices", json={"id": "pi-1"})
    assert last_seen(fleet, "pi-1") is None


# --- in order ---


def test_a_row_behind_a_hole_waits_and_the_answer_says_from_where(receiver: Receiver, outbox: Outbox) -> None:
    rows = [outbox.telemetry() for _ in range(4)]
    receiver.take(rows[0], rows[2], rows[3])
    assert receiver.stored() == [1]
    assert acknowledged(receiver, outbox) == 1
    assert receiver.ingest.counts["gap"] == 2
    receiver.take(*rows[1:])
    assert receiver.stored() == [1, 2, 3, 4]


def test_what_the_device_gave_up_is_no_hole(receiver: Receiver, outbox: Outbox) -> None:
    outbox.last = outbox.acked = 40
    receiver.take(outbox.telemetry())
    assert receiver.stored() == [41]
    assert acknowledged(receiver, outbox) == 41


def test_streams_are_apart(receiver: Receiver, outbox: Outbox, bundle: Digest) -> None:
    others = [Outbox("pi-2", bundle), Outbox("pi-1", bundle, stream=b"stream-2")]
    for each in (outbox, *others):
        receiver.take(each.telemetry())
    assert receiver.stored() == [1, 1, 1]
    assert len(receiver.wire.acknowledged) == 3


@pytest.mark.parametrize("a_day_later", [False, True])
def test_a_compacted_row_replaces_what_it_contains(
    receiver: Receiver, outbox: Outbox, a_day_later: bool
) -> None:
    windows = [outbox.window() for _ in range(3)]
    receiver.take(*(outbox.telemetry(window) for window in windows[:2]))
    if a_day_later:
        receiver.fleet.clock.ms += DAY_MS
    merged = replace(merge(merge(windows[0], windows[1]), windows[2]), flags=Flags.COMPACTED)
    receiver.take(outbox.telemetry(merged, prev=0, first=1, last=3))
    found = receiver.fleet.services.telemetry.windows().items
    assert [(window.first, window.last, window.rows) for window in found] == [(1, 3, 300)]
    assert acknowledged(receiver, outbox) == 3


def test_a_compacted_row_replaces_what_waits_in_the_same_batch(receiver: Receiver, outbox: Outbox) -> None:
    windows = [outbox.window() for _ in range(2)]
    first = outbox.telemetry(windows[0])
    receiver.take(first, outbox.telemetry(merge(*windows), prev=0, first=1, last=2))
    assert [window.rows for window in receiver.fleet.services.telemetry.windows().items] == [200]


# --- not telemetry ---


@pytest.mark.attack
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"bundle": b"unknown!"}, "not_found"),
        ({"spec_hash": spec_hash(b"another spec")}, "message"),
        ({"features": ()}, "message"),
    ],
)
def test_a_window_of_no_known_spec_is_refused_kept_and_not_sent_for_ever(
    receiver: Receiver, outbox: Outbox, changes: dict[str, Any], code: str
) -> None:
    receiver.take(outbox.telemetry(outbox.window(**changes)), outbox.telemetry())
    assert [told[0] for told in receiver.refused()] == [code]
    assert receiver.stored() == [2]
    assert acknowledged(receiver, outbox) == 2


@pytest.mark.attack
def test_a_device_cannot_fill_the_log(
    receiver: Receiver, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        receiver.take(*(outbox.frame(Up.TELEMETRY, b"nonsense") for _ in range(50)))
        receiver.fleet.clock.sleep(61)
    assert len(receiver.refused()) == 100
    assert len([record for record in caplog.records if "refused a row" in record.message]) == 2


@pytest.mark.attack
@pytest.mark.parametrize("channel", [Up.TELEMETRY, Up.EVENTS])
@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"[" * 50_000, b'{"events": 1}'])
def test_q10_a_body_of_another_kind_is_refused(
    receiver: Receiver, outbox: Outbox, channel: Up, body: bytes
) -> None:
    receiver.take(outbox.frame(channel, body))
    assert len(receiver.refused()) == 1
    assert acknowledged(receiver, outbox) == 1


@pytest.mark.attack
def test_q10_a_frame_that_is_damaged_is_dropped_and_sent_again(receiver: Receiver, outbox: Outbox) -> None:
    whole = outbox.telemetry()
    damaged = replace(whole, payload=whole.payload[:-1] + bytes([whole.payload[-1] ^ 1]))
    receiver.take(damaged)
    assert receiver.wire.received == [1]
    assert acknowledged(receiver, outbox) is None
    receiver.take(whole)
    assert receiver.stored() == [1]


@pytest.mark.attack
@pytest.mark.parametrize("channel", list(Up))
@pytest.mark.parametrize("payload", [b"", b"{", b"\x00" * 64, b"\xc3\x28", b'{"epoch":' + b"9" * 400 + b"}"])
def test_q10_hostile_messages_are_dropped_and_others_go_on(
    receiver: Receiver, outbox: Outbox, channel: Up, payload: bytes
) -> None:
    receiver.take(outbox.message(channel, payload), outbox.telemetry())
    assert receiver.stored() == [1]
    assert receiver.wire.received == [1, 2]


@pytest.mark.attack
def test_t3_a_device_that_is_not_enrolled_is_not_heard(receiver: Receiver, bundle: Digest) -> None:
    stranger = Outbox("pi-9", bundle)
    receiver.take(stranger.telemetry())
    assert receiver.stored() == []
    assert receiver.wire.acknowledged == {}
    assert receiver.ingest.counts["dropped"] == 1


# --- time ---


def test_a_late_window_is_where_it_belongs(receiver: Receiver, outbox: Outbox) -> None:
    live = outbox.window(start_utc_ms=START_MS)
    late = outbox.window(start_utc_ms=START_MS - 9 * DAY_MS, flags=Flags.HISTORICAL)
    receiver.take(outbox.telemetry(live), outbox.telemetry(late))
    found = receiver.fleet.services.telemetry.windows().items
    assert [(window.first, window.at_ms) for window in found] == [(1, START_MS), (2, START_MS - 9 * DAY_MS)]


@pytest.mark.attack
@pytest.mark.parametrize(
    ("start", "quality", "expected"),
    [
        (START_MS - DAY_MS, 1, (START_MS - DAY_MS, True)),
        (START_MS + DAY_MS // 2, 1, (START_MS + DAY_MS // 2, True)),
        (START_MS + 3650 * DAY_MS, 1, (START_MS - 3_600_000, False)),
        (1000, CLOCK_NONE, (START_MS - 3_600_000, False)),
        (0, 1, (0, True)),
    ],
)
def test_t4_a_window_is_placed_by_its_device_if_that_can_be_believed(
    start: int, quality: int, expected: tuple[int, bool]
) -> None:
    summary = builders.window(start_utc_ms=start, clock_quality=quality)
    assert placed_at(summary, START_MS) == expected


@pytest.mark.parametrize("hours_apart", [0, 1])
def test_a_page_of_windows_leads_to_the_next(receiver: Receiver, outbox: Outbox, hours_apart: int) -> None:
    for seq in range(1, 6):
        at = START_MS - DAY_MS + seq * hours_apart * 3_600_000
        receiver.take(outbox.telemetry(outbox.window(start_utc_ms=at)))
        if seq == 3:
            receiver.fleet.clock.ms += DAY_MS
    seen: list[int] = []
    cursor = ""
    while True:
        page = receiver.fleet.client.get(f"/v1/devices/pi-1/windows?limit=2{cursor}").json()
        seen += [window["first"] for window in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert seen == [5, 4, 3, 2, 1]
    assert receiver.fleet.client.get("/v1/devices/pi-9/windows").status_code == 404


@pytest.mark.attack
@pytest.mark.parametrize("key", ["", "x", "1 2", "-1 2026-01-01 5", f"{10**40} 2026-01-01 1", 7])
def test_a_cursor_of_another_list_is_refused(receiver: Receiver, key: str | int) -> None:
    cursor = cursors.encode(key)
    answer = receiver.fleet.client.get(f"/v1/drift?cursor={cursor}")
    assert (answer.status_code, answer.json()["code"]) == (422, "input")


# --- devices ---


def test_hello_presence_and_report_reach_the_registry(receiver: Receiver, outbox: Outbox) -> None:
    hello = Hello(
        protocol=1,
        boot="b" * 32,
        epoch=7,
        agent_version="0.1.0",
        hardware=Hardware(arch="aarch64", cores=4, ram_bytes=1 << 30),
        engines=(EngineInfo(name="onnx", version="1.23.2"),),
        desired_revision=0,
    )
    report = UpdateReport(
        revision=0, epoch=7, models={"digits": ModelReport(active=outbox.bundle, phase=Phase.CONFIRMED)}
    )
    receiver.take(
        outbox.message(Up.HELLO, encode(hello)),
        outbox.message(Up.REPORT, encode(report)),
        outbox.message(Up.STATE, encode(PresenceMessage(state=Presence.LOST, epoch=7))),
        outbox.message(Up.STATE, encode(PresenceMessage(state=Presence.ONLINE, epoch=6))),
        outbox.message(Up.STATE, b""),
    )
    shown = receiver.fleet.client.get("/v1/devices/pi-1").json()["device"]
    assert shown["presence"] == "lost"
    assert shown["reported"]["digits"]["active"] == outbox.bundle


# --- the thread ---


@contextmanager
def working(receiver: Receiver) -> Iterator[None]:
    receiver.ingest.start(receiver.wire)
    try:
        yield
    finally:
        receiver.ingest.stop()


def test_while_the_disk_refuses_nothing_is_acknowledged_and_nothing_lost(
    receiver: Receiver, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = threading.Semaphore(0)
    mended = threading.Event()
    commit = receiver.ingest._commit_day

    def failing(batch: Any) -> None:
        if not mended.is_set():
            refusals.release()
            _full_disk()
        commit(batch)

    monkeypatch.setattr("skerry_fleet.telemetry.ingest._RETRY_S", 0.01)
    monkeypatch.setattr(receiver.ingest, "_commit_day", failing)
    with working(receiver):
        receiver.ingest.deliver(outbox.telemetry())
        assert refusals.acquire(timeout=10)
        assert refusals.acquire(timeout=10)
        assert receiver.wire.received == []
        mended.set()
        wait_until(lambda: receiver.wire.received == [1], "the window is acknowledged")
    assert receiver.stored() == [1]


def test_a_message_that_nobody_foresaw_is_dropped_alone(
    receiver: Receiver, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sort = receiver.ingest._sort

    def surprising(message: Message, batch: Any) -> None:
        if message.channel is Up.COMMAND_RESULT:
            raise RuntimeError("unforeseen")
        sort(message, batch)

    monkeypatch.setattr(receiver.ingest, "_sort", surprising)
    for message in (outbox.telemetry(), outbox.message(Up.COMMAND_RESULT, b"{}"), outbox.telemetry()):
        receiver.ingest.deliver(message)
    with working(receiver):
        wait_until(lambda: len(receiver.wire.received) == 3, "all are dealt with")
    assert receiver.stored() == [1, 2]
    assert receiver.ingest.counts["dropped"] == 1


@pytest.mark.attack
def test_a_flood_of_qos_0_is_bounded(
    receiver: Receiver, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry_fleet.telemetry.ingest.WAITING", 10)
    for _ in range(50):
        receiver.ingest.deliver(outbox.message(Up.TELEMETRY, b"x", qos=0))
    assert receiver.ingest.counts["dropped"] == 40


# --- files ---


def test_retention_unlinks_whole_days(receiver: Receiver, outbox: Outbox) -> None:
    days = receiver.fleet.services.days
    for _ in range(3):
        receiver.take(outbox.telemetry())
        receiver.fleet.clock.ms += 60 * DAY_MS
    assert len(days.days()) == 3
    assert len(days.prune()) == 2
    assert receiver.stored() == [3]


def test_a_damaged_file_is_set_aside_and_the_device_loses_nothing_of_what_follows(
    receiver: Receiver, outbox: Outbox
) -> None:
    days = receiver.fleet.services.days
    receiver.take(outbox.telemetry())
    days.close()
    path = receiver.fleet.services.settings.data / "telemetry" / f"{days.today()}.db"
    path.write_bytes(b"not a database" * 1000)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    outbox.acked = 1
    receiver.restarted()
    receiver.take(outbox.telemetry())
    assert receiver.stored() == [2]
    assert len(list(path.parent.glob("*.damaged-*"))) == 1


def test_an_unknown_bundle_has_no_reference(fleet: Fleet, bundle: Digest) -> None:
    references = References(fleet.services.db, fleet.services.models)
    known = references.find(bytes.fromhex(bundle.removeprefix("sha256:")[:16]))
    assert (known.digest, known.version) == (bundle, "1.0.0")
    with pytest.raises(NotFoundError):
        references.find(b"unknown!")


def _full_disk(*_: object) -> None:
    raise StorageError("the disk is full")
