"""Fixtures of the fleet's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fleet.fleet_harness import Fleet, running_fleet

from skerry_contract.signing import EcdsaSigner


@pytest.fixture
def fleet(tmp_path: Path, signer: EcdsaSigner) -> Iterator[Fleet]:
    """A fresh fleet server of the organisation ``acme`` that trusts the session's engineer."""
    with running_fleet(tmp_path, signer) as running:
        yield running
