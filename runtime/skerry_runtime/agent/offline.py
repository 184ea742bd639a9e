"""Install and roll back without a daemon: the same verification, the same order on the disk.

The new generation is tested here and set pending; the daemon activates it at its next start, in probation.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from skerry_contract.errors import ConflictError, NotFoundError, SkerryError
from skerry_contract.limits import DEFAULT_LIMITS
from skerry_contract.manifest import parse_manifest
from skerry_contract.messages import ErrorReport

from ..config import DeviceConfig
from . import machine, trust, trust_process
from .clock import SystemClock
from .files import make_folder
from .installer import stage
from .lock import Lock
from .loop import Loop
from .preflight import BLAMELESS, Preflight
from .record import read_record, record_of, write_record
from .slots import Generation, ModelSlots, installed_models
from .store import Store
from .update import UpdateState
from .workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A generation that the daemon activates at its next start."""

    name: str
    version: str
    digest: str
    variant: str
    reason: str


def install(config: DeviceConfig, file: BinaryIO, say: Callable[[str], None]) -> Prepared:
    """Verify, stage, self-test, set pending.

    Raises:
        ConflictError: a daemon runs after all, or an earlier install is not settled yet.
        SkerryError: the bundle is refused, or fails its self-test (then it is quarantined).
    """
    models = config.data_dir / "models"
    for folder in (config.data_dir, models, config.data_dir / "state"):
        make_folder(folder)
    lock = Lock(config.data_dir / "lock")
    try:
        return _install(config, models, file, say)
    finally:
        lock.release()


def _install(config: DeviceConfig, models: Path, file: BinaryIO, say: Callable[[str], None]) -> Prepared:
    store = Store(config.data_dir / "store")
    hardware = machine.hardware(config.device_class)
    say("verifying")
    answer = trust_process.import_file(
        trust.ImportFile(
            fd=file.fileno(),
            store=str(store.folder),
            engineers=config.trust.engineers,
            floors={name: ModelSlots(path, store).floor() for name, path in installed_models(models).items()},
            device=trust.Device(
                hardware=hardware, engines=machine.engines(), ram_budget_bytes=config.budgets.ram_bytes
            ),
        )
    )
    slots = ModelSlots(models / answer.name, store)
    slots.recover()
    if slots.pending() is not None:
        raise ConflictError(
            f"an install of {answer.name} waits for the daemon",
            hint="Start the daemon, or roll it back first.",
        )
    current = slots.current()
    if current is not None and slots.load(current.gen).digest == answer.manifest:
        raise ConflictError(f"{answer.name} {answer.version} is installed already")
    slots.release_quarantine(answer.manifest)
    manifest = parse_manifest(store.read(answer.manifest, DEFAULT_LIMITS.manifest_bytes))
    choice = (answer.variant, answer.reason)
    generation = stage(slots, manifest, answer.manifest, answer.signature, choice, config.budgets)
    clock = SystemClock(config.data_dir / "state" / "time-floor")
    record = replace(
        record_of(generation, UpdateState.SELF_TEST),
        transaction=secrets.token_hex(4),
        revision=read_record(slots.state / "update").revision,
        source="file",
        signature=answer.signature,
        reason=answer.reason,
        since=clock.now_ms(),
    )
    say("self_test")
    try:
        _self_test(generation, hardware.ram_bytes)
    except SkerryError as error:
        report = ErrorReport.of(error)
        if not isinstance(error, BLAMELESS):
            slots.quarantine(answer.manifest, report, clock.now_ms())
        write_record(slots.state / "update", replace(record, state=UpdateState.REJECTED, error=report))
        slots.collect()
        raise
    write_record(slots.state / "update", replace(record, state=UpdateState.PENDING))
    slots.set_pending(generation)
    say("pending")
    return Prepared(
        name=answer.name,
        version=answer.version,
        digest=answer.manifest,
        variant=answer.variant,
        reason=answer.reason,
    )


def _self_test(generation: Generation, machine_bytes: int) -> None:
    """Raises what the self-test finds."""
    loop = Loop()
    workers = Workers(loop)
    found: list[SkerryError] = []

    def failed(error: SkerryError) -> None:
        found.append(error)
        loop.stop()

    Preflight(workers, generation, machine_bytes, loop.stop, failed)
    try:
        loop.run()
    finally:
        workers.close()
        loop.close()
    if found:
        raise found[0]


def roll_back(config: DeviceConfig, name: str) -> tuple[str, str]:
    """Return to the last good generation, or forget what waits to be activated; model and version that the
    daemon will serve.

    Raises:
        ConflictError: a daemon runs after all.
        NotFoundError: no such model, or nothing to return to.
        SlotError: what would be returned to is damaged, or below the security floor.
    """
    installed = installed_models(config.data_dir / "models")
    if not name and len(installed) == 1:
        name = next(iter(installed))
    if name not in installed:
        raise NotFoundError(
            f"there is no model {name!r}" if name else "which model?",
            hint=f"Installed here: {', '.join(installed) or 'none'}.",
        )
    lock = Lock(config.data_dir / "lock")
    try:
        slots = ModelSlots(installed[name], Store(config.data_dir / "store"))
        slots.recover()
        pending, current = slots.pending(), slots.current()
        why = ErrorReport.of(ConflictError("rolled back on request: by a person on the device"))
        since = SystemClock(config.data_dir / "state" / "time-floor").now_ms()
        if current is None:
            raise NotFoundError(f"{name} has no earlier generation", hint="Install another bundle instead.")
        if pending:
            leaving, staying = slots.load(pending.gen), slots.load(current.gen)
            slots.check(staying)
        else:
            leaving, staying = slots.load(current.gen), slots.last_good()
        record = replace(
            record_of(leaving, UpdateState.ROLLED_BACK),
            transaction=secrets.token_hex(4),
            revision=read_record(slots.state / "update").revision,
            error=why,
            since=since,
        )
        write_record(slots.state / "update", record)
        slots.quarantine(leaving.digest, why, since)
        if pending:
            slots.drop_pending()
        else:
            slots.fall_back()
        return name, staying.manifest.version
    finally:
        lock.release()
