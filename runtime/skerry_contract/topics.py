"""MQTT topics <-> dataclasses, both ways, all in this file (``docs/spec/mqtt-v1.md``).

The identity of a sender is its topic, which the broker's ACL binds to its credential; never the payload.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from .errors import MessageError

ROOT: Final = "skerry/1"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Up(StrEnum):
    """Channels from a device to the fleet."""

    HELLO = "hello"
    STATE = "st"
    REPORT = "rep"
    TELEMETRY = "tel"
    EVENTS = "evt"
    COMMAND_RESULT = "ack"
    BLOCK_REQUEST = "blk"


class Down(StrEnum):
    """Channels from the fleet to a device."""

    DESIRED = "des"
    COMMAND = "cmd"
    BLOCK = "blk"
    ACKNOWLEDGE = "ack"
    ANCHOR = "anchor"


class GroupDown(StrEnum):
    """Hints to a group; they carry no authority."""

    POKE = "poke"
    DESIRED = "des"


@dataclass(frozen=True, slots=True)
class DeviceUp:
    """
    >>> str(DeviceUp("acme", "pi-7", Up.HELLO))
    'skerry/1/acme/d/pi-7/up/hello'
    >>> parse_topic("skerry/1/acme/d/pi-7/up/hello") == DeviceUp("acme", "pi-7", Up.HELLO)
    True
    """

    org: str
    device: str
    channel: Up

    def __str__(self) -> str:
        return f"{ROOT}/{check_id(self.org)}/d/{check_id(self.device)}/up/{self.channel}"


@dataclass(frozen=True, slots=True)
class DeviceDown:
    """
    >>> str(DeviceDown("acme", "pi-7", Down.DESIRED))
    'skerry/1/acme/d/pi-7/dn/des'
    """

    org: str
    device: str
    channel: Down

    def __str__(self) -> str:
        return f"{ROOT}/{check_id(self.org)}/d/{check_id(self.device)}/dn/{self.channel}"


@dataclass(frozen=True, slots=True)
class Group:
    """
    >>> str(Group("acme", "gate-cameras", GroupDown.POKE))
    'skerry/1/acme/g/gate-cameras/dn/poke'
    """

    org: str
    group: str
    channel: GroupDown

    def __str__(self) -> str:
        return f"{ROOT}/{check_id(self.org)}/g/{check_id(self.group)}/dn/{self.channel}"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """
    >>> str(Enrolment("acme", "c41", "up"))
    'skerry/1/acme/enr/c41/up'
    """

    org: str
    claim: str
    direction: str
    """``up`` or ``dn``."""

    def __str__(self) -> str:
        return f"{ROOT}/{check_id(self.org)}/enr/{check_id(self.claim)}/{self.direction}"


Topic = DeviceUp | DeviceDown | Group | Enrolment


def parse_topic(text: str) -> Topic:
    """The dataclass of a topic.

    Raises:
        MessageError: not a topic of this protocol version.

    >>> parse_topic("skerry/1/acme/d/+/up/hello")
    Traceback (most recent call last):
        ...
    skerry_contract.errors.MessageError: '+' is not an identifier
    """
    parts = text.split("/")
    if parts[:2] == ROOT.split("/") and len(parts) in (6, 7):
        try:
            match parts[2:]:
                case [org, "d", device, "up", channel]:
                    return DeviceUp(check_id(org), check_id(device), Up(channel))
                case [org, "d", device, "dn", channel]:
                    return DeviceDown(check_id(org), check_id(device), Down(channel))
                case [org, "g", group, "dn", channel]:
                    return Group(check_id(org), check_id(group), GroupDown(channel))
                case [org, "enr", claim, ("up" | "dn") as direction]:
                    return Enrolment(check_id(org), check_id(claim), direction)
        except ValueError as error:
            raise MessageError(f"{text[:120]!r}: {error}") from error
    raise MessageError(f"{text[:120]!r} is not a Skerry topic")


def check_id(text: str) -> str:
    """An organisation, device, group or claim identifier: 1 to 64 of A-Z a-z 0-9 . _ -

    Raises:
        MessageError: otherwise.
    """
    if not _ID.fullmatch(text):
        raise MessageError(
            f"{text[:80]!r} is not an identifier",
            hint="Use 1 to 64 letters, digits, '.', '_' or '-', no '/'.",
        )
    return text


def ingest_filter(worker_group: str | None = None) -> str:
    """What a server worker subscribes to.

    >>> ingest_filter("ingest")
    '$share/ingest/skerry/1/+/d/+/up/+'
    """
    plain = f"{ROOT}/+/d/+/up/+"
    return f"$share/{worker_group}/{plain}" if worker_group else plain


def down_filter(org: str, device: str) -> str:
    """What a device subscribes to.

    >>> down_filter("acme", "pi-7")
    'skerry/1/acme/d/pi-7/dn/+'
    """
    return f"{ROOT}/{check_id(org)}/d/{check_id(device)}/dn/+"
