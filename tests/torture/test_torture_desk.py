"""Found by the torture, kept here: starts at which the disk cannot be read, closing, first installs."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.torture import desk as module
from tests.torture.desk import Desk, trust_in_process
from tests.torture.players import Play
from tests.torture.release import Release
from tests.torture.releases import Releases

from skerry_contract.errors import StorageError
from skerry_runtime.agent import trust_process
from skerry_runtime.agent.files import hash_file, read_small, write_durably
from skerry_runtime.agent.store import Store


@pytest.fixture
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Release]:
    monkeypatch.setattr(trust_process, "_ask", trust_process._ask)  # put back at the end
    trust_in_process()
    made = Releases(tmp_path / "releases")

    def get(number: int) -> Release:
        release = made.get(number)
        module.published.cache_clear()
        return release

    return get


def install(desk: Desk, release: Release) -> None:
    with open(release.file, "rb") as file:
        desk.install_file(file)


@pytest.mark.attack
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_l7_a_start_at_which_the_pointers_cannot_be_read_is_made_again(
    tmp_path: Path, releases: Callable[[int], Release], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    first = releases(1)
    second = releases(2)
    desk = Desk(tmp_path / "data", tmp_path / "releases")
    install(desk, first)
    state = tmp_path / "data" / "models" / "torture" / "state"
    before = (state / "current").read_bytes()
    honest = os.open

    def refusing(path: str, *rest: int, **named: int) -> int:
        if str(path).endswith(("/current", "/pending")):
            raise OSError(number, os.strerror(number))
        return honest(path, *rest, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refusing)
        again = Desk(tmp_path / "data", tmp_path / "releases")
        again.start()
        assert again.answers() is None
        with pytest.raises(StorageError, match="cannot be read"):
            install(again, second)
        again.order(second)  # the fleet's order is looked at again later
    assert (state / "current").read_bytes() == before
    again.loop.pass_time()
    assert again.loop.faults == []
    assert again.answers() == 1
    install(again, second)
    assert again.answers() == 2


def test_a_first_install_that_is_cut_before_its_self_test_goes_on_trial(
    tmp_path: Path, releases: Callable[[int], Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = releases(1)
    desk = Desk(tmp_path / "data", tmp_path / "releases")
    with monkeypatch.context() as cut:
        # The generation is complete; what would follow is the self-test.
        cut.setattr("skerry_runtime.agent.preparation.Preparation.schedule", lambda self: None)
        install(desk, release)
    again = Desk(tmp_path / "data", tmp_path / "releases", Play(silent=True))
    again.start()
    slots = again.model.slots
    assert slots.current() is None
    assert slots.pending() is not None
    assert again.answers() == 1
    last = Desk(tmp_path / "data", tmp_path / "releases", Play(canary_ok=False))
    last.start()
    assert last.answers() is None
    assert slots.quarantined(release.digest) is not None


def test_an_error_of_closing_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = os.close

    def close(descriptor: int) -> None:
        honest(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    store = Store(tmp_path / "store")
    digest = store.add(b"weights")
    with monkeypatch.context() as patched:
        patched.setattr(os, "close", close)
        write_durably(tmp_path / "file", b"content")
        assert read_small(tmp_path / "file", 100) == b"content"
        assert hash_file(store.path(digest))[1] == 7
