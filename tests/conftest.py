"""Fixtures that every area may use; the builders themselves are in `tests.builders`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from tests.builders import BundleBuilder, new_signer

from skerry_contract.signing import EcdsaSigner

# Processes of other tests share the machine: a slow example is no failure.
settings.register_profile("skerry", deadline=None, print_blob=True)
settings.load_profile("skerry")


@pytest.fixture(scope="session")
def signer() -> EcdsaSigner:
    """The engineer's key of this test session."""
    return new_signer()


@pytest.fixture
def builder(signer: EcdsaSigner) -> BundleBuilder:
    """A fresh bundle builder that signs with the session's key."""
    return BundleBuilder(signer=signer)


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the project."""
    return Path(__file__).resolve().parent.parent
