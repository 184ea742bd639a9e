"""Store, generations and pointers: old or new after a kill at any system call, never neither."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.builders import BundleBuilder
from tests.runtime import kill_installer

from skerry_contract.digests import digest_of, hex_of
from skerry_contract.errors import NotFoundError, SlotError, StorageError
from skerry_contract.manifest import BlobRef
from skerry_contract.messages import ErrorReport
from skerry_contract.signing import EcdsaSigner
from skerry_runtime.agent.slots import TRIES, Current, Generation, ModelSlots, Pending
from skerry_runtime.agent.store import Store

BAD = ErrorReport(code="selftest", message="it crashed")
NAMES = {1: "1.0.0", 2: "2.0.0", 3: "3.0.0"}


@pytest.fixture
def slots(tmp_path: Path) -> ModelSlots:
    return ModelSlots(tmp_path / "data" / "models" / "digits", Store(tmp_path / "data" / "store"))


class Installs:
    """Installs numbered versions; each has blobs of its own and blobs that all share."""

    def __init__(self, folder: Path, signer: EcdsaSigner) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._signer = signer

    def bundle(self, release: int, floor: int = 0) -> Path:
        builder = BundleBuilder(
            version=NAMES[release],
            release=release,
            signer=self._signer,
            models={"fp32": f"model {release} ".encode() * 200},
            changes={"security_floor": floor},
        )
        return builder.write(self.folder)

    def install(self, release: int, floor: int = 0) -> None:
        kill_installer.install(self.data, self.bundle(release, floor))


@pytest.fixture
def installs(tmp_path: Path, signer: EcdsaSigner) -> Installs:
    return Installs(tmp_path, signer)


def active(slots: ModelSlots) -> Generation:
    """What would serve: checked, as the daemon does."""
    current = slots.current()
    assert current is not None
    generation = slots.load(current.gen)
    slots.check(generation)
    return generation


# --- the store ---------------------------------------------------------------------------------------


def test_a_blob_is_what_its_name_says(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digest = store.add(b"weights")
    assert store.has(digest, 7)
    assert store.read(digest, 100) == b"weights"
    store.check(BlobRef(digest=digest, size=7))
    assert not store.has(digest, 8)


def test_a_damaged_blob_is_found_and_removed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digest = store.add(b"weights")
    store.path(digest).write_bytes(b"weightz")
    with pytest.raises(SlotError, match="damaged"):
        store.check(BlobRef(digest=digest, size=7))
    assert not store.has(digest, 7)


@pytest.mark.attack
@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_b12_a_blob_that_is_no_plain_file_is_refused(tmp_path: Path, kind: str) -> None:
    store = Store(tmp_path / "store")
    digest = digest_of(b"weights")
    (tmp_path / "elsewhere").write_bytes(b"weights")
    path = store.path(digest)
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        subprocess.run(["mkfifo", str(path)], check=True)
    else:
        path.mkdir()
    with pytest.raises(SlotError):
        store.check(BlobRef(digest=digest, size=7))
    with pytest.raises(SlotError):
        store.read(digest, 100)


def test_space_is_refused_early(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(StorageError, match="the install needs"):
        store.reserve(1 << 60)
    store.reserve(0)


# --- generations and pointers --------------------------------------------------------------------------


def test_a_generation_is_complete_and_made_of_hard_links(installs: Installs, slots: ModelSlots) -> None:
    installs.install(1)
    generation = active(slots)
    names = {path.name for path in generation.folder.iterdir()}
    refs = generation.manifest.blobs_for(generation.manifest.variants[0])
    assert names == {"manifest.json", "manifest.sig", "generation.json"} | {
        hex_of(ref.digest) for ref in refs
    }
    for ref in refs:
        linked = generation.folder / hex_of(ref.digest)
        assert linked.stat().st_ino == slots.store.path(ref.digest).stat().st_ino


def test_staging_refuses_a_blob_that_changed_since_it_was_stored(
    installs: Installs, slots: ModelSlots
) -> None:
    installs.install(1)
    generation = active(slots)
    ref = generation.manifest.variants[0].model
    slots.store.path(ref.digest).write_bytes(b"x" * ref.size)
    signature = digest_of((generation.folder / "manifest.sig").read_bytes())
    with pytest.raises(SlotError, match="damaged"):
        slots.stage(generation.manifest, signature, generation.info)


def test_tries_are_counted_before_loading_and_given_back_by_a_clean_stop(
    installs: Installs, slots: ModelSlots
) -> None:
    installs.install(1)
    slots.set_pending(active(slots))
    seen = [pending.tries for _ in range(TRIES) if (pending := slots.take_try())]
    assert seen == [2, 1, 0]
    assert slots.take_try() is None
    slots.give_try_back()
    pending = slots.pending()
    assert pending is not None
    assert pending.tries == 1


def test_the_floor_rises_with_a_confirmed_manifest_and_never_falls(
    installs: Installs, slots: ModelSlots
) -> None:
    installs.install(1)
    assert slots.floor() == 0
    installs.install(2, floor=2)
    assert slots.floor() == 2
    installs.install(3)
    assert slots.floor() == 2


def test_falling_back_goes_to_the_last_good_one_once(installs: Installs, slots: ModelSlots) -> None:
    installs.install(1)
    installs.install(2)
    assert slots.fall_back().manifest.version == "1.0.0"
    assert active(slots).manifest.version == "1.0.0"
    with pytest.raises(NotFoundError):
        slots.fall_back()


def test_falling_back_below_the_floor_is_refused(installs: Installs, slots: ModelSlots) -> None:
    installs.install(1)
    installs.install(2, floor=2)
    with pytest.raises(SlotError, match="below the security floor 2"):
        slots.fall_back()
    assert active(slots).manifest.version == "2.0.0"


def test_collection_keeps_current_pending_and_last_good(installs: Installs, slots: ModelSlots) -> None:
    installs.install(1)
    installs.install(2)
    second = active(slots)
    installs.install(3)
    kept = {generation.manifest.version for generation in slots.generations()}
    assert kept == {"2.0.0", "3.0.0"}
    slots.set_pending(second)
    slots.collect()
    assert {generation.manifest.version for generation in slots.generations()} == {"2.0.0", "3.0.0"}
    slots.store.collect(())
    slots.check(second)
    for blob in slots.store.folder.iterdir():
        assert blob.stat().st_nlink > 1


def test_a_half_downloaded_blob_that_is_wanted_is_kept(slots: ModelSlots) -> None:
    wanted, other = digest_of(b"wanted"), digest_of(b"other")
    for digest in (wanted, other):
        slots.store.part(digest).write_bytes(b"half")
    slots.store.collect((wanted,))
    assert slots.store.part(wanted).exists()
    assert not slots.store.part(other).exists()


@pytest.mark.parametrize("pointer", ["current", "pending"])
def test_nothing_is_collected_while_a_pointer_is_unreadable(
    installs: Installs, slots: ModelSlots, pointer: str
) -> None:
    installs.install(1)
    installs.install(2)
    tried = slots.last_good()
    installs.install(3)
    slots.set_pending(tried)
    (slots.state / pointer).write_bytes(b"rotten")
    assert slots.collect() == 0
    assert {generation.manifest.version for generation in slots.generations()} == {"2.0.0", "3.0.0"}


def test_a_pointer_that_rots_while_the_agent_runs_takes_neither_floor_nor_fallback_along(
    installs: Installs, slots: ModelSlots
) -> None:
    installs.install(1)
    installs.install(2, floor=2)
    assert slots.floor() == 2
    second = active(slots)
    installs.install(3)
    third = active(slots)
    (slots.state / "current").write_bytes(b"rotten")
    assert slots.floor() == 2
    assert slots.last_good().number == second.number
    assert slots.set_pending(third).prev == third.number
    assert slots.confirm(third) == Current(gen=third.number, previous=second.number, floor=2)


def test_a_rotten_pending_pointer_is_no_try_too_many(installs: Installs, slots: ModelSlots) -> None:
    installs.install(1)
    slots.set_pending(active(slots))
    (slots.state / "pending").write_bytes(b"rotten")
    with pytest.raises(SlotError, match="damaged"):
        slots.take_try()


# --- recovery ------------------------------------------------------------------------------------------


def test_a_quarantined_pending_generation_is_dropped(installs: Installs, slots: ModelSlots) -> None:
    installs.install(1)
    installs.install(2)
    second = active(slots)
    slots.fall_back()
    slots.set_pending(second)
    slots.quarantine(second.digest, BAD, 0)
    assert slots.recover() == ["dropped the pending generation: it was quarantined"]
    assert slots.pending() is None
    assert active(slots).manifest.version == "1.0.0"
    assert slots.quarantined(second.digest) is not None


def test_a_rollback_that_was_cut_is_finished(installs: Installs, slots: ModelSlots) -> None:
    installs.install(1)
    installs.install(2)
    slots.quarantine(active(slots).digest, BAD, 0)
    slots.recover()
    assert active(slots).manifest.version == "1.0.0"


@pytest.mark.attack
@pytest.mark.parametrize("damage", [b"", b"{", b"\0" * 40, b'{"gen": 77}'])
def test_l4_a_damaged_pointer_is_rebuilt(installs: Installs, slots: ModelSlots, damage: bytes) -> None:
    installs.install(1)
    installs.install(2, floor=2)
    (slots.state / "current").write_bytes(damage)
    slots.recover()
    assert active(slots).manifest.version == "2.0.0"
    assert slots.floor() == 2


@pytest.mark.attack
def test_l4_without_a_pointer_the_newest_generation_has_to_prove_itself(
    installs: Installs, slots: ModelSlots
) -> None:
    """Whether it was ever confirmed nobody knows: a first install may have been cut before its self-test."""
    installs.install(1)
    installs.install(2, floor=2)
    newest = active(slots)
    (slots.state / "current").unlink()
    slots.recover()
    assert (slots.current(), slots.pending()) == (None, Pending(gen=newest.number, prev=1, tries=TRIES))
    assert slots.collect() == 0
    slots.confirm(newest)
    assert slots.floor() == 2
    assert slots.recover() == []


@pytest.mark.attack
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EACCES])
def test_l7_a_pointer_that_cannot_be_read_for_want_of_something_is_not_rebuilt(
    installs: Installs, slots: ModelSlots, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    installs.install(1)
    installs.install(2, floor=2)
    before = slots.current()
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", _refusing(number))
        for ask in (slots.current, slots.pending, slots.recover, slots.collect):
            with pytest.raises(StorageError):
                ask()
    slots.recover()
    assert slots.current() == before


def test_a_disk_that_fails_once_to_read_is_asked_again(
    installs: Installs, slots: ModelSlots, monkeypatch: pytest.MonkeyPatch
) -> None:
    installs.install(1)
    honest, failures = os.read, [True]

    def read(descriptor: int, size: int) -> bytes:
        if failures and failures.pop():
            raise OSError(errno.EIO, "Input/output error")
        return honest(descriptor, size)

    with monkeypatch.context() as patched:
        patched.setattr(os, "read", read)
        assert slots.current() is not None
    assert failures == []


def _refusing(number: int) -> Callable[..., int]:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("damage", [b"", b"{", b'{"gen": 99, "prev": 1, "tries": 3}'])
def test_a_damaged_pending_pointer_is_dropped(installs: Installs, slots: ModelSlots, damage: bytes) -> None:
    installs.install(1)
    (slots.state / "pending").write_bytes(damage)
    slots.recover()
    assert slots.pending() is None
    assert active(slots).manifest.version == "1.0.0"


def test_a_damaged_generation_is_found_before_it_is_used(installs: Installs, slots: ModelSlots) -> None:
    installs.install(1)
    generation = active(slots)
    ref = generation.manifest.variants[0].model
    (generation.folder / hex_of(ref.digest)).write_bytes(b"y" * ref.size)
    with pytest.raises(SlotError):
        slots.check(generation)
    assert not slots.store.has(ref.digest, ref.size)
    (generation.folder / "manifest.json").write_bytes(b"{}")
    with pytest.raises(SlotError):
        slots.load(generation.number)


# --- killed anywhere -------------------------------------------------------------------------------------

CALLS = "openat,write,fsync,rename,mkdir,unlink,linkat,ftruncate"
POINTS = 4
"""Kills for each system call here; the long run kills at every one."""


def _strace(arguments: list[str], installs: Installs, release: int) -> int:
    script = Path(kill_installer.__file__)
    command = ["strace", "-f", "-qq", *arguments, sys.executable, str(script)]
    done = subprocess.run(
        [*command, str(installs.data), str(installs.folder / f"digits-{NAMES[release]}.skerry")],
        capture_output=True,
        check=False,
    )
    return done.returncode


def _counts(installs: Installs, folder: Path) -> Counter[str]:
    """How often each call happens on the data folder's side of the install, in a copy."""
    trace = folder / "trace"
    assert _strace(["-o", str(trace), "-e", f"trace={CALLS}"], installs, 2) == 0
    return Counter(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_kill_at_any_system_call_leaves_the_old_one_or_the_new_one(
    tmp_path: Path, installs: Installs
) -> None:
    installs.install(1)
    installs.bundle(2)
    pristine = tmp_path / "pristine"
    shutil.copytree(installs.data, pristine)
    counts = _counts(installs, tmp_path)
    assert set(counts) >= {"openat", "write", "fsync", "rename", "mkdir", "unlink", "linkat"}
    outcomes: Counter[str] = Counter()
    for call, count in counts.items():
        # The interpreter's own start opens and reads many files first: the install is at the end.
        first = max(1, count - 60) if call == "openat" else 1
        points = sorted({first + (count - first) * k // max(1, POINTS - 1) for k in range(POINTS)})
        for point in points:
            shutil.rmtree(installs.data)
            shutil.copytree(pristine, installs.data)
            inject = f"inject={call}:signal=KILL:when={point}"
            _strace(["-o", "/dev/null", "-e", f"trace={call}", "-e", inject], installs, 2)
            slots = ModelSlots(installs.data / "models" / "digits", Store(installs.data / "store"))
            slots.recover()
            version = active(slots).manifest.version
            assert version in ("1.0.0", "2.0.0"), (call, point)
            pending = slots.pending()
            if pending is not None:
                slots.check(slots.load(pending.gen))
            outcomes[version] += 1
            # And the install can be done again, to its end.
            installs.install(2)
            assert active(slots).manifest.version == "2.0.0"
            assert {g.manifest.version for g in slots.generations()} <= {"1.0.0", "2.0.0"}
    assert outcomes["1.0.0"] > 5
    assert outcomes["2.0.0"] > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    "fault", ["fsync:error=EIO", "write:error=ENOSPC", "rename:error=EROFS", "linkat:error=EIO"]
)
def test_an_install_on_a_failing_disk_changes_nothing_and_says_so(installs: Installs, fault: str) -> None:
    installs.install(1)
    installs.bundle(2)
    script = Path(kill_installer.__file__)
    call = fault.partition(":")[0]
    done = subprocess.run(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={fault}:when=3+",
         sys.executable, str(script), str(installs.data), str(installs.folder / "digits-2.0.0.skerry")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "StorageError" in done.stderr or call == "write"
    slots = ModelSlots(installs.data / "models" / "digits", Store(installs.data / "store"))
    slots.recover()
    assert active(slots).manifest.version == "1.0.0"
    installs.install(2)
    assert active(slots).manifest.version == "2.0.0"
