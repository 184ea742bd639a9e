"""Topics: a dataclass and its text are the same thing, in both directions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_contract.errors import MessageError
from skerry_contract.topics import (
    ROOT,
    DeviceDown,
    DeviceUp,
    Down,
    Enrolment,
    Group,
    GroupDown,
    Topic,
    Up,
    check_id,
    down_filter,
    ingest_filter,
    parse_topic,
)

IDS = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
TOPICS = (
    st.builds(DeviceUp, IDS, IDS, st.sampled_from(Up))
    | st.builds(DeviceDown, IDS, IDS, st.sampled_from(Down))
    | st.builds(Group, IDS, IDS, st.sampled_from(GroupDown))
    | st.builds(Enrolment, IDS, IDS, st.sampled_from(["up", "dn"]))
)


@given(TOPICS)
def test_both_directions(topic: Topic) -> None:
    assert parse_topic(str(topic)) == topic


@given(TOPICS)
def test_topics_fit_strict_brokers(topic: Topic) -> None:
    text = str(topic)
    assert text.count("/") <= 7
    assert len(text.encode()) <= 256
    assert not set(text) & set("+#\0 ")


@given(
    st.text()
    | st.lists(st.sampled_from([ROOT, "acme", "d", "g", "enr", "pi-7", "up", "dn", "hello", "des", ""])).map(
        "/".join
    )
)
def test_any_text_is_a_topic_or_refused(text: str) -> None:
    try:
        topic = parse_topic(text)
    except MessageError:
        return
    assert str(topic) == text


@pytest.mark.attack
@pytest.mark.parametrize(
    "bad",
    [
        "",
        "+",
        "#",
        "a/b",
        "..",
        ".hidden",
        "-x",
        "_x",
        "a b",
        "a\n",
        "a\0",
        "ä",
        "a" * 65,
        "$SYS",
        "a+",
        "a#",
    ],
)
def test_q2_an_identifier_cannot_leave_its_level(bad: str) -> None:
    with pytest.raises(MessageError, match="is not an identifier"):
        check_id(bad)
    for topic in (
        DeviceUp(bad, "d", Up.HELLO),
        DeviceUp("o", bad, Up.HELLO),
        DeviceDown("o", bad, Down.DESIRED),
    ):
        with pytest.raises(MessageError):
            str(topic)
    with pytest.raises(MessageError):
        parse_topic(f"{ROOT}/acme/d/{bad}/up/hello")
    with pytest.raises(MessageError):
        down_filter("acme", bad)


@pytest.mark.parametrize(
    "text",
    [
        "skerry/2/acme/d/pi-7/up/hello",
        "Skerry/1/acme/d/pi-7/up/hello",
        "/skerry/1/acme/d/pi-7/up/hello",
        "skerry/1/acme/d/pi-7/up/hello/",
        "skerry/1/acme/d/pi-7/up/bye",
        "skerry/1/acme/d/pi-7/up/des",
        "skerry/1/acme/d/pi-7/dn/hello",
        "skerry/1/acme/x/pi-7/up/hello",
        "skerry/1/acme/g/cameras/up/poke",
        "skerry/1/acme/enr/c41/sideways",
        "$share/ingest/skerry/1/acme/d/pi-7/up/hello",
    ],
)
def test_other_topics_are_refused(text: str) -> None:
    with pytest.raises(MessageError):
        parse_topic(text)


def matches(topic: str, pattern: str) -> bool:
    """As MQTT 5, section 4.7, without '#'."""
    levels, wanted = topic.split("/"), pattern.split("/")
    return len(levels) == len(wanted) and all(b in ("+", a) for a, b in zip(levels, wanted, strict=True))


@given(IDS, IDS, IDS)
def test_filters_match_what_they_are_for_and_nothing_else(org: str, device: str, other: str) -> None:
    for up in Up:
        assert matches(str(DeviceUp(org, device, up)), ingest_filter())
        assert not matches(str(DeviceUp(org, device, up)), down_filter(org, device))
    for down in Down:
        assert matches(str(DeviceDown(org, device, down)), down_filter(org, device))
        assert not matches(str(DeviceDown(org, device, down)), ingest_filter())
        assert matches(str(DeviceDown(org, other, down)), down_filter(org, device)) == (other == device)
