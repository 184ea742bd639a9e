"""Fixtures of the runtime's tests: a broker, the fleet's side of the protocol, a device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.agent_world import Broker, Device, Headquarters, running

from skerry_contract.signing import EcdsaSigner


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    running_broker = Broker(tmp_path)
    running_broker.start()
    yield running_broker
    running_broker.stop()


@pytest.fixture
def headquarters(broker: Broker) -> Iterator[Headquarters]:
    hq = Headquarters(broker)
    yield hq
    hq.close()


@pytest.fixture
def device(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters
) -> Iterator[Device]:
    """A running device of the fleet."""
    with running(Device(tmp_path, signer, broker, headquarters)) as up:
        yield up


@pytest.fixture
def loner(tmp_path: Path, signer: EcdsaSigner) -> Iterator[Device]:
    """A running device without any fleet."""
    with running(Device(tmp_path, signer)) as up:
        yield up
