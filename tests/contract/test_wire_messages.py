"""Messages: what is sent is what arrives; anything else is a `MessageError`, never another exception."""

from __future__ import annotations

import contextlib
import json
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_contract import messages
from skerry_contract.digests import digest_of
from skerry_contract.errors import BundleFormatError, MessageError, UnavailableError
from skerry_contract.limits import DEFAULT_LIMITS
from skerry_contract.messages import (
    Acknowledge,
    BlockRequest,
    Command,
    CommandResult,
    DesiredModel,
    DesiredState,
    DeviceSettings,
    EngineInfo,
    ErrorReport,
    Event,
    EventBatch,
    Hardware,
    Hello,
    ModelReport,
    Phase,
    Presence,
    PresenceMessage,
    Probation,
    UpdateReport,
    WireBlob,
    decode,
    encode,
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
WHOLE = st.integers(0, 2**63 - 1)
AMOUNT = st.floats(0, 1e12, allow_nan=False)
DIGEST = st.binary(max_size=4).map(digest_of)
NAME = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=20)
FREE = st.dictionaries(
    TEXT,
    st.none() | st.booleans() | TEXT | st.integers(-(2**63), 2**63) | st.lists(TEXT, max_size=2),
    max_size=3,
)

ERROR = st.builds(ErrorReport, code=TEXT, message=TEXT, hint=TEXT)
BLOB = st.builds(WireBlob, digest=DIGEST, size=WHOLE)
EVENT = st.builds(
    Event,
    kind=TEXT,
    wall_ms=WHOLE,
    mono_ms=WHOLE,
    boot=TEXT,
    clock_quality=st.integers(0, 2),
    transaction=TEXT,
    model=TEXT,
    digest=TEXT,
    data=FREE,
    error=st.none() | ERROR,
)
MODEL_REPORT = st.builds(
    ModelReport,
    active=st.none() | DIGEST,
    active_version=TEXT,
    active_variant=TEXT,
    target=st.none() | DIGEST,
    target_version=TEXT,
    phase=st.none() | st.sampled_from(Phase),
    error=st.none() | ERROR,
    since=WHOLE,
    bytes_done=WHOLE,
    bytes_total=WHOLE,
)
DESIRED_MODEL = st.builds(
    DesiredModel,
    version=TEXT,
    release=WHOLE,
    manifest=BLOB,
    signature=BLOB,
    jitter_s=AMOUNT,
    probation=st.builds(Probation, requests=WHOLE, seconds=AMOUNT, max_error_rate=AMOUNT),
)
HARDWARE = st.builds(
    Hardware,
    arch=TEXT,
    cores=WHOLE,
    ram_bytes=WHOLE,
    isa=st.lists(TEXT, max_size=3).map(tuple),
    device_class=TEXT,
)
MESSAGES: dict[type, st.SearchStrategy[Any]] = {
    ErrorReport: ERROR,
    EngineInfo: st.builds(EngineInfo, name=TEXT, version=TEXT),
    Hardware: HARDWARE,
    Hello: st.builds(
        Hello,
        protocol=WHOLE,
        boot=TEXT,
        epoch=WHOLE,
        agent_version=TEXT,
        hardware=HARDWARE,
        engines=st.lists(st.builds(EngineInfo, name=TEXT, version=TEXT), max_size=2).map(tuple),
        desired_revision=WHOLE,
        capabilities=st.lists(TEXT, max_size=2).map(tuple),
        wall_ms=WHOLE,
        clock_quality=st.integers(0, 2),
    ),
    PresenceMessage: st.builds(PresenceMessage, state=st.sampled_from(Presence), epoch=WHOLE, until=WHOLE),
    WireBlob: BLOB,
    Probation: st.builds(Probation, requests=WHOLE, seconds=AMOUNT, max_error_rate=AMOUNT),
    DesiredModel: DESIRED_MODEL,
    DeviceSettings: st.builds(DeviceSettings, window_seconds=st.floats(1e-3, 1e9), window_rows=WHOLE),
    DesiredState: st.builds(
        DesiredState,
        device=TEXT,
        revision=WHOLE,
        expires=WHOLE,
        models=st.dictionaries(NAME, DESIRED_MODEL, max_size=2),
        settings=st.none()
        | st.builds(DeviceSettings, window_seconds=st.floats(1e-3, 1e9), window_rows=WHOLE),
        rollout=TEXT,
    ),
    ModelReport: MODEL_REPORT,
    UpdateReport: st.builds(
        UpdateReport, revision=WHOLE, epoch=WHOLE, models=st.dictionaries(NAME, MODEL_REPORT, max_size=2)
    ),
    BlockRequest: st.builds(
        BlockRequest, transfer=WHOLE, digest=DIGEST, offset=WHOLE, block=WHOLE, count=WHOLE
    ),
    Acknowledge: st.builds(Acknowledge, stream=TEXT, seq=WHOLE),
    Command: st.builds(Command, id=TEXT, verb=TEXT, arguments=FREE, deadline=WHOLE),
    CommandResult: st.builds(CommandResult, id=TEXT, ok=st.booleans(), result=FREE, error=st.none() | ERROR),
    Event: EVENT,
    EventBatch: st.builds(EventBatch, events=st.lists(EVENT, max_size=3).map(tuple)),
}


def is_message(kind: object) -> bool:
    return (
        isinstance(kind, type)
        and hasattr(kind, "__dataclass_fields__")
        and kind.__module__ == messages.__name__
    )


def test_every_message_is_tested_here() -> None:
    assert {kind for kind in vars(messages).values() if is_message(kind)} == set(MESSAGES)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=30)
@given(data=st.data())
def test_what_is_sent_is_what_arrives(kind: type, data: st.DataObject) -> None:
    message = data.draw(MESSAGES[kind])
    assert decode(encode(message), kind) == message


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=10)
@given(data=st.data())
def test_unknown_fields_are_ignored(kind: type, data: st.DataObject) -> None:
    message = data.draw(MESSAGES[kind])
    newer = {**json.loads(encode(message)), "from_a_newer_peer": {"deep": [1, {"x": None}]}}
    assert decode(json.dumps(newer).encode(), kind) == message


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=30)
@given(data=st.data())
def test_any_value_in_any_place_is_read_or_refused(kind: type, data: st.DataObject) -> None:
    raw = json.loads(encode(data.draw(MESSAGES[kind])))
    raw[data.draw(st.sampled_from(sorted(raw)))] = data.draw(
        st.sampled_from(
            [None, True, -1, 2**63, 10**30, 1e300, "", "\0", [], [None], {}, {"": 0}, {"../x": {}}]
        )
    )
    with contextlib.suppress(MessageError):
        decode(json.dumps(raw).encode(), kind)


@pytest.mark.attack
@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"1",
        b'""',
        b"{",
        b"{}}",
        b'{"a":1',
        b"\x00",
        b"\xff\xfe",
        b"{'a':1}",
        b'{"x":"\xff"}',
        b'{"\xed\xa0\x80":1}',
        b'{"x":"\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 20_000,
        b'{"x":' + b"[" * 60_000 + b"]" * 60_000 + b"}",
        b'{"id":NaN}',
        b'{"x":1e99999}',
    ],
    ids=lambda data: repr(data)[:20],
)
def test_q10_what_is_no_message_is_refused(kind: type, data: bytes) -> None:
    try:
        message: object = decode(data, kind)
    except MessageError:
        return
    # The fields of these all have defaults, and what is unknown is skipped.
    assert message in (Probation(), DeviceSettings())


@pytest.mark.attack
@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_q7_an_oversize_message_is_refused_unread(kind: type) -> None:
    data = b" " * (DEFAULT_LIMITS.message_bytes + 1)
    with pytest.raises(MessageError, match=f"over the limit of {DEFAULT_LIMITS.message_bytes}"):
        decode(data, kind)
    with pytest.raises(MessageError, match="over the limit of 1"):
        decode(b"{}", kind, max_bytes=1)


@pytest.mark.parametrize(
    "message",
    [
        {"digest": "sha256:0", "size": 1},
        {"digest": "../../etc/passwd", "size": 1},
        {"digest": digest_of(b"").upper(), "size": 1},
        {"digest": digest_of(b""), "size": -1},
        {"digest": digest_of(b""), "size": 2**63},
        {"digest": digest_of(b""), "size": True},
        {"digest": digest_of(b""), "size": "1"},
        {"digest": None, "size": 1},
        {"digest": digest_of(b"")},
    ],
)
def test_a_bad_digest_or_size_is_refused(message: dict[str, object]) -> None:
    with pytest.raises(MessageError, match="not a WireBlob"):
        decode(json.dumps(message).encode(), WireBlob)


@pytest.mark.attack
@pytest.mark.parametrize("name", ["", "..", "../digits", "a/b", "Digits", "digits\n", "a" * 65, ".digits"])
def test_s10_a_model_name_cannot_be_a_path(name: str) -> None:
    blob = {"digest": digest_of(b""), "size": 0}
    model = {"version": "1.0.0", "release": 1, "manifest": blob, "signature": blob}
    desired = {"device": "pi-7", "revision": 1, "expires": 1, "models": {name: model}}
    with pytest.raises(MessageError, match="not a DesiredState"):
        decode(json.dumps(desired).encode(), DesiredState)
    report = {"revision": 1, "epoch": 1, "models": {name: {"active": None}}}
    with pytest.raises(MessageError, match="not a UpdateReport"):
        decode(json.dumps(report).encode(), UpdateReport)


def test_a_whole_number_may_stand_for_an_amount() -> None:
    assert decode(b'{"requests":5,"seconds":2}', Probation) == Probation(requests=5, seconds=2.0)


def test_a_window_takes_some_time() -> None:
    for seconds in (0, -1.0):
        with pytest.raises(MessageError, match="window_seconds"):
            decode(json.dumps({"window_seconds": seconds}).encode(), DeviceSettings)


def test_an_error_crosses_the_wire() -> None:
    report = ErrorReport.of(BundleFormatError("truncated", hint="Copy it again."))
    error = decode(encode(report), ErrorReport).to_error()
    assert (type(error), error.message, error.hint) == (BundleFormatError, "truncated", "Copy it again.")
    assert isinstance(ErrorReport(code="new.kind", message="?").to_error(), UnavailableError)


def test_a_report_of_an_endless_error_fits_a_message() -> None:
    report = ErrorReport.of(BundleFormatError("x" * 10**6, hint="y" * 10**6))
    assert len(encode(report)) < 4000


def test_the_largest_message_fits_the_strictest_broker() -> None:
    assert DEFAULT_LIMITS.message_bytes <= 128 * 1024  # AWS IoT Core


def test_messages_are_immutable_and_slotted() -> None:
    for kind in MESSAGES:
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert "__slots__" in vars(kind)
