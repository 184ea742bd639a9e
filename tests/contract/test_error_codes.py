"""Errors: a code never changes its meaning, because devices and servers of other versions report it."""

from __future__ import annotations

import pickle

import pytest

from skerry_contract import errors
from skerry_contract.errors import BY_CODE, SkerryError, from_code

CODES = {
    "access": "AccessError",
    "budget": "BudgetError",
    "budget.latency": "LatencyBudgetError",
    "budget.memory": "MemoryBudgetError",
    "budget.size": "SizeBudgetError",
    "bundle": "BundleError",
    "bundle.expired": "ExpiredError",
    "bundle.format": "BundleFormatError",
    "bundle.incompatible": "IncompatibleError",
    "bundle.manifest": "ManifestError",
    "bundle.rollback": "RollbackError",
    "bundle.signature": "SignatureError",
    "config": "ConfigError",
    "conflict": "ConflictError",
    "data": "DataError",
    "engine": "EngineError",
    "input": "InputError",
    "message": "MessageError",
    "model": "ModelError",
    "not_found": "NotFoundError",
    "overloaded": "OverloadedError",
    "selftest": "SelfTestError",
    "slot": "SlotError",
    "storage": "StorageError",
    "transfer": "TransferError",
    "unavailable": "UnavailableError",
}
"""Add to this list; never change or remove a line."""


def test_the_codes_are_pinned() -> None:
    assert {code: kind.__name__ for code, kind in BY_CODE.items()} == CODES


def test_no_two_errors_share_a_code() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SkerryError)
    ]
    assert len({kind.code for kind in kinds}) == len(kinds)


def test_a_code_names_its_parent() -> None:
    for code, kind in BY_CODE.items():
        parent = code.rpartition(".")[0]
        assert kind.__base__ is (BY_CODE[parent] if parent else SkerryError)


def test_every_error_is_drawn_in_the_tree() -> None:
    assert all(kind in (errors.__doc__ or "") for kind in CODES.values())


def test_the_base_refuses_to_be_raised() -> None:
    with pytest.raises(TypeError, match="base class"):
        raise SkerryError("nobody knows who has to act")


@pytest.mark.parametrize("kind", BY_CODE.values(), ids=lambda kind: kind.code)
def test_an_error_survives_a_process_boundary(kind: type[SkerryError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what was wrong", hint="what to do")))  # noqa: S301 - our own bytes
    assert (type(error), str(error), error.hint) == (kind, "what was wrong", "what to do")


@pytest.mark.parametrize("kind", BY_CODE.values(), ids=lambda kind: kind.code)
def test_an_error_is_rebuilt_from_its_code(kind: type[SkerryError]) -> None:
    error = from_code(kind.code, "what was wrong", "what to do")
    assert (type(error), error.message, error.hint) == (kind, "what was wrong", "what to do")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("bundle.sealed", errors.BundleError),
        ("budget.memory.gpu", errors.MemoryBudgetError),
        ("quantum", errors.UnavailableError),
        ("error", errors.UnavailableError),
        ("", errors.UnavailableError),
    ],
)
def test_a_code_of_a_newer_peer_becomes_its_nearest_parent(code: str, expected: type[SkerryError]) -> None:
    assert type(from_code(code, "said by a newer peer")) is expected
