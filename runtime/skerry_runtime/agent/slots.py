"""The store, the generations and the pointers: what makes an install old-or-new and never neither.

::

    store/<hex>                    blobs, manifests and signatures by digest, shared by all models
    models/<name>/gens/<n>/        a generation: hard links into the store, manifest.json, generation.json
    models/<name>/state/pending    {gen, prev, tries}: being tried
    models/<name>/state/current    {gen, previous, floor}: good; ``previous`` is the last good one
    models/<name>/state/bad/<hex>  {reason}: quarantined bundles

A generation is immutable from its rename on. Order of an activation: files, fsync, folder, fsync, rename,
fsync, pointer. `ModelSlots.recover` finishes what a kill left half done, from these files alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from skerry_contract.digests import Digest, hex_of
from skerry_contract.errors import InputError, NotFoundError, SkerryError, SlotError
from skerry_contract.limits import DEFAULT_LIMITS
from skerry_contract.manifest import Manifest, Variant, parse_manifest
from skerry_contract.messages import ErrorReport

from .files import (
    fsync_dir,
    make_folder,
    read_small,
    remove_durably,
    storage_errors,
    write_durably,
)
from .store import Store, check_file, read_exactly

TRIES: Final = 3
MANIFEST_FILE: Final = "manifest.json"
SIGNATURE_FILE: Final = "manifest.sig"
GENERATION_FILE: Final = "generation.json"
_STATE_BYTES: Final = 1 << 16
_NUMBER = re.compile(r"[1-9]\d{0,17}")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveBudgets:
    """The stricter of the bundle's and the device's; 0 sets no limit."""

    ram_bytes: int = 0
    latency_p95_us: int = 0
    load_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationInfo:
    """``generation.json``: what the worker needs beside the signed manifest."""

    variant: str
    bundle: Digest
    budgets: EffectiveBudgets
    reason: str = ""
    """Why this variant; for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A complete folder of one model: verified when it was made, and again by `ModelSlots.check`."""

    number: int
    folder: Path
    info: GenerationInfo
    manifest: Manifest

    @property
    def digest(self) -> Digest:
        return self.info.bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    gen: int
    prev: int
    """Generation to return to; 0 if there is none."""
    tries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    gen: int
    previous: int = 0
    """Last good generation before this one; 0 if there is none."""
    floor: int = 0
    """Releases below are refused; it never falls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """Why a bundle is not tried again."""

    reason: ErrorReport
    since: int = 0


class ModelSlots:
    """The generations and pointers of one model."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.store = store
        self.gens = folder / "gens"
        self.state = folder / "state"
        self.bad = self.state / "bad"
        self._known: Current | None = None
        """As it was last read or written."""
        for path in (self.gens, self.bad):
            make_folder(path)

    # --- generations ------------------------------------------------------------------------------

    def stage(self, manifest: Manifest, signature: Digest, info: GenerationInfo) -> Generation:
        """Build the next generation from what is in the store.

        Everything is hashed again first, so that what is linked is what was verified.

        Args:
            manifest: what the blob ``info.bundle`` says.
            signature: digest of the signature file.

        Raises:
            SlotError: a blob is missing or damaged.
            StorageError: the disk fails.
        """
        self.store.read(info.bundle, DEFAULT_LIMITS.manifest_bytes)
        self.store.read(signature, DEFAULT_LIMITS.signature_bytes)
        names = {MANIFEST_FILE: info.bundle, SIGNATURE_FILE: signature}
        for ref in manifest.blobs_for(manifest.variant(info.variant)):
            self.store.check(ref)
            names[hex_of(ref.digest)] = ref.digest
        number = max(self._numbers(), default=0) + 1
        folder = self.gens / str(number)
        temporary = self.gens / f"{number}.tmp"
        with storage_errors(f"building generation {number}"):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(mode=0o700)
            for name, digest in names.items():
                os.link(self.store.path(digest), temporary / name, follow_symlinks=False)
        write_durably(temporary / GENERATION_FILE, msgspec.json.encode(info))
        with storage_errors(f"building generation {number}"):
            fsync_dir(temporary)
            temporary.rename(folder)
            fsync_dir(self.gens)
        return Generation(number=number, folder=folder, info=info, manifest=manifest)

    def load(self, number: int) -> Generation:
        """Read a generation's description.

        Raises:
            SlotError: missing or damaged.
        """
        folder = self.gens / str(number)
        info = _read_json(folder / GENERATION_FILE, GenerationInfo)
        if info is None:
            raise SlotError(f"generation {number} has no readable {GENERATION_FILE}")
        manifest_bytes = read_exactly(folder / MANIFEST_FILE, info.bundle, DEFAULT_LIMITS.manifest_bytes)
        try:
            manifest = parse_manifest(manifest_bytes)
            manifest.variant(info.variant)
        except SkerryError as error:
            raise SlotError(f"generation {number}: {error}") from error
        return Generation(number=number, folder=folder, info=info, manifest=manifest)

    def check(self, generation: Generation) -> None:
        """Hash every blob of a generation before it is used.

        A damaged blob is removed from the store too (it is the same file), so that it can be fetched again.

        Raises:
            SlotError: a blob is missing or damaged.
        """
        for ref in generation.manifest.blobs_for(variant_of(generation)):
            try:
                check_file(generation.folder / hex_of(ref.digest), ref)
            except SlotError:
                self.store.drop(ref.digest)
                raise

    def generations(self) -> Iterator[Generation]:
        """The readable ones, newest first."""
        for number in sorted(self._numbers(), reverse=True):
            with contextlib.suppress(SlotError):
                yield self.load(number)

    # --- pointers ---------------------------------------------------------------------------------

    def pending(self) -> Pending | None:
        return _read_json(self.state / "pending", Pending)

    def current(self) -> Current | None:
        current = _read_json(self.state / "current", Current)
        self._known = current or self._known
        return current

    def _before(self) -> Current | None:
        """The pointer before a change. If it has rotted since it was last read, that is still known."""
        current = self.current()
        return self._known if current is None and self._there("current") else current

    def set_pending(self, generation: Generation) -> Pending:
        """WRITE ``pending`` before the generation sees any traffic. Raises `StorageError`."""
        current = self._before()
        pending = Pending(gen=generation.number, prev=current.gen if current else 0, tries=TRIES)
        self._write("pending", pending)
        return pending

    def take_try(self) -> Pending | None:
        """At a start with ``pending``: WRITE tries - 1 *before* loading. None when none was left.

        Raises:
            SlotError: the pointer is not there, or damaged; that is no fault of the model.
            StorageError: the disk fails.
        """
        pending = self.pending()
        if pending is None:
            raise SlotError("the pointer to the pending generation is damaged", hint="Install it again.")
        if pending.tries <= 0:
            return None
        pending = replace(pending, tries=pending.tries - 1)
        self._write("pending", pending)
        return pending

    def give_try_back(self) -> None:
        """A clean shutdown within probation is no failure."""
        pending = self.pending()
        if pending is not None and pending.tries < TRIES:
            self._write("pending", replace(pending, tries=pending.tries + 1))

    def drop_pending(self) -> None:
        """Forget what was being tried. Raises `StorageError`."""
        remove_durably(self.state / "pending")

    def confirm(self, generation: Generation, *, raise_floor: bool = True) -> Current:
        """WRITE ``current``, unlink ``pending``. The floor follows the confirmed manifest, never down."""
        before = self._before()
        floor = before.floor if before else 0
        if raise_floor:
            floor = max(floor, generation.manifest.security_floor)
        previous = (
            before.gen if before and before.gen != generation.number else before.previous if before else 0
        )
        current = Current(gen=generation.number, previous=previous, floor=floor)
        self._write("current", current)
        self.drop_pending()
        return current

    def last_good(self) -> Generation:
        """The generation to fall back to, hashed.

        Raises:
            NotFoundError: there is none.
            SlotError: it is damaged, or below the floor.
        """
        current = self._before()
        if current is None or not current.previous:
            raise NotFoundError("there is no earlier good generation", hint="Install a bundle instead.")
        generation = self.load(current.previous)
        if generation.manifest.release < current.floor:
            raise SlotError(
                f"release {generation.manifest.release} is below the security floor {current.floor}",
                hint="Install a newer bundle instead.",
            )
        self.check(generation)
        return generation

    def fall_back(self) -> Generation:
        """WRITE ``current`` to the last good generation; raises what `last_good` does, and `StorageError`."""
        generation = self.last_good()
        self._write("current", Current(gen=generation.number, previous=0, floor=self.floor()))
        return generation

    def floor(self) -> int:
        current = self._before()
        return current.floor if current else 0

    # --- quarantine -------------------------------------------------------------------------------

    def quarantine(self, digest: Digest, reason: ErrorReport, since: int) -> None:
        """WRITE ``bad/<hex>``. Raises `StorageError`."""
        write_durably(self.bad / hex_of(digest), msgspec.json.encode(Quarantine(reason=reason, since=since)))

    def quarantined(self, digest: Digest) -> Quarantine | None:
        path = self.bad / hex_of(digest)
        if not _exists(path):
            return None
        damaged = Quarantine(
            reason=ErrorReport(code="slot", message="it was quarantined; the reason is unreadable")
        )
        return _read_json(path, Quarantine) or damaged

    def release_quarantine(self, digest: Digest) -> None:
        """A person wants to try it again."""
        remove_durably(self.bad / hex_of(digest))

    # --- recovery and collection ------------------------------------------------------------------

    def recover(self) -> Sequence[str]:
        """Finish what a kill left half done; returns what was done, for the log.

        Afterwards ``pending``, if there, is a readable generation that is neither quarantined nor current,
        and ``current``, if it was ever written and any readable generation is left, points to one. A
        generation of which nothing says that it was confirmed is put on trial, never made current. Raises
        `StorageError`.
        """
        done: list[str] = []
        with storage_errors("recovering the slots"):
            for path in [*self.gens.glob("*.tmp"), *self.state.glob("*.tmp"), *self.bad.glob("*.tmp")]:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                done.append(f"removed the unfinished {path.name}")
        done += self._recover_pending()
        done += self._recover_current()
        return done

    def _recover_pending(self) -> Sequence[str]:
        if not self._there("pending"):
            return ()
        pending, current = self.pending(), self.current()
        if pending is None:
            why = "it was unreadable"
        elif current is not None and pending.gen == current.gen:
            why = "it was confirmed"
        else:
            try:
                generation = self.load(pending.gen)
            except SlotError as error:
                why = str(error)
            else:
                if self.quarantined(generation.digest) is None:
                    return ()
                why = "it was quarantined"
        self.drop_pending()
        return (f"dropped the pending generation: {why}",)

    def _recover_current(self) -> Sequence[str]:
        current, pending = self.current(), self.pending()
        if current is not None:
            with contextlib.suppress(SlotError):
                generation = self.load(current.gen)
                if self.quarantined(generation.digest) is None or not current.previous:
                    return ()
                # A rollback of a confirmed generation was under way.
                with contextlib.suppress(NotFoundError):
                    return (f"went back to generation {self.fall_back().number}",)
        if not self._there("current"):
            return self._try_again() if pending is None else ()
        floor = current.floor if current else 0
        trying = pending.gen if pending else 0
        candidates = [gen for gen in self.generations() if gen.number != trying]
        candidates.sort(key=lambda gen: (current is not None and gen.number == current.previous, gen.number))
        for generation in reversed(candidates):
            if self.quarantined(generation.digest) is not None or generation.manifest.release < floor:
                continue
            floor = max(floor, generation.manifest.security_floor)
            self._write("current", Current(gen=generation.number, floor=floor))
            return (f"rebuilt the pointer: generation {generation.number}",)
        return ()

    def _try_again(self) -> Sequence[str]:
        """Nothing was confirmed yet, or somebody deleted the pointer: what is there has to prove itself."""
        found = [gen.number for gen in self.generations() if self.quarantined(gen.digest) is None]
        if not found:
            return ()
        # The one before is named so that it is kept.
        self._write("pending", Pending(gen=found[0], prev=found[1] if found[1:] else 0, tries=TRIES))
        return (f"generation {found[0]} was never confirmed: it is on trial",)

    def collect(self) -> int:
        """Remove generations other than current, pending and last good; returns how many.

        Does nothing while a pointer is unreadable: then nobody knows what is needed.
        """
        current, pending = self.current(), self.pending()
        pointers = ((current, "current"), (pending, "pending"))
        if any(pointer is None and self._there(name) for pointer, name in pointers):
            return 0
        keep = {pending.gen, pending.prev} if pending else set()
        if current:
            keep |= {current.gen, current.previous}
        removed = 0
        with storage_errors("collecting generations"):
            for number in self._numbers():
                if number not in keep:
                    doomed = self.gens / f"{number}.tmp"
                    (self.gens / str(number)).rename(doomed)
                    shutil.rmtree(doomed)
                    removed += 1
        return removed

    def _numbers(self) -> list[int]:
        """Raises `StorageError`."""
        with storage_errors("looking for generations"):
            return [int(path.name) for path in self.gens.iterdir() if _NUMBER.fullmatch(path.name)]

    def _there(self, name: str) -> bool:
        """Whether a pointer's file exists, readable or not. Raises `StorageError`."""
        return _exists(self.state / name)

    def _write(self, name: str, pointer: Pending | Current) -> None:
        write_durably(self.state / name, msgspec.json.encode(pointer))
        if isinstance(pointer, Current):
            self._known = pointer


def variant_of(generation: Generation) -> Variant:
    return generation.manifest.variant(generation.info.variant)


def effective_budgets(manifest: Manifest, ram_bytes: int, latency_p95_us: int) -> EffectiveBudgets:
    """The stricter of the bundle's budgets and the device's, where 0 sets none.

    >>> from types import SimpleNamespace as N
    >>> bundle = N(budgets=N(ram_bytes=100, latency_p95_us=0, load_ms=5))
    >>> effective_budgets(bundle, 80, 900)
    EffectiveBudgets(ram_bytes=80, latency_p95_us=900, load_ms=5)
    """
    own = manifest.budgets
    return EffectiveBudgets(
        ram_bytes=min(filter(None, (own.ram_bytes, ram_bytes)), default=0),
        latency_p95_us=min(filter(None, (own.latency_p95_us, latency_p95_us)), default=0),
        load_ms=own.load_ms,
    )


def installed_models(models: Path) -> Mapping[str, Path]:
    """Folder of each model that was ever installed, by name. Raises `StorageError`."""
    with storage_errors("looking for installed models"):
        if not models.is_dir():
            return {}
        return {path.name: path for path in sorted(models.iterdir()) if path.is_dir()}


def _exists(path: Path) -> bool:
    with storage_errors(f"looking for {path.name}"):
        return path.exists()


def _read_json(path: Path, kind: type[T]) -> T | None:
    """A small state file of ours; None if it is missing or damaged (truth is rebuilt then).

    Raises:
        StorageError: it cannot be read, and that is not its fault: nobody may guess what it says.
    """
    try:
        return msgspec.json.decode(read_small(path, _STATE_BYTES), type=kind)
    except (SlotError, msgspec.DecodeError, UnicodeDecodeError, InputError):
        return None
