"""Devices: enrolment, presence, reports, and what is desired of them.

Desired state is level-triggered: the database is the truth, and a device that says hello or reports with
another revision is sent the newest one again. What is desired changes together with its signed envelope and
its outbox row, or not at all.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from skerry_contract.errors import ConflictError, InputError, MessageError, NotFoundError
from skerry_contract.messages import (
    DesiredState,
    Hello,
    ModelReport,
    Phase,
    PresenceMessage,
    Probation,
    UpdateReport,
)
from skerry_contract.topics import check_id

from .. import cursors
from ..clock import Clock
from ..cursors import Page
from ..db import Database
from ..director import Director
from ..governance.service import FLEET, Journal
from . import config_toml, desired, placements, repository, views
from .config_toml import Site
from .desired import OutboxRow
from .views import DesiredView, DeviceDetail, DeviceView, Enrolled, PlacementView, ReportedView

MAX_LABELS: Final = 32
MAX_REVISION: Final = 1 << 53
"""Beyond this a device's claim is ignored."""
PLACEMENTS_SHOWN: Final = 50

_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_FAILED: Final = frozenset({Phase.ROLLED_BACK, Phase.REJECTED})

ReportObserver = Callable[[sa.Connection, str, UpdateReport], None]


class DeviceService:
    """``credential_observers`` are called after a credential was made or removed, ``outbox_observers`` after
    something may have been put into the outbox, ``change_observers`` after a device said something; all of
    them outside any transaction. ``report_observers`` are called within the transaction of a report, before a
    device's own rollback is answered."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        journal: Journal,
        director: Director,
        site: Site,
        *,
        desired_ttl_s: int,
        hash_password: Callable[[str], str],
    ) -> None:
        self._db = db
        self._clock = clock
        self._journal = journal
        self._director = director
        self._site = site
        self._ttl_ms = desired_ttl_s * 1000
        self._hash_password = hash_password
        self.credential_observers: list[Callable[[], None]] = []
        self.outbox_observers: list[Callable[[], None]] = []
        self.change_observers: list[Callable[[], None]] = []
        self.report_observers: list[ReportObserver] = []

    # --- enrolment ---

    def enrol(
        self,
        device_id: str,
        labels: Mapping[str, str],
        device_class: str,
        actor: str,
        *,
        data_dir: str = config_toml.DATA_DIR,
    ) -> Enrolled:
        """A new device with its credential, of which only a hash is kept. ``data_dir`` is where the device
        will keep its data; it goes into the configuration.

        Raises:
            InputError: the identifier, the class, a label or the folder cannot be used.
            ConflictError: the device exists, or no engineer is trusted yet.
        """
        _check_names(device_id, labels, device_class)
        config_toml.check_data_dir(data_dir)
        if not self._site.engineers:
            raise ConflictError(
                "the server trusts no engineer's key, so a device would trust none",
                hint="Start the server with '--trust engineer.pub'.",
            )
        password = secrets.token_urlsafe(32)
        hashed = self._hash_password(password)
        now = self._clock.now_ms()
        with self._db.write() as db:
            if repository.exists(db, device_id):
                raise ConflictError(
                    f"the device {device_id} exists",
                    hint=f"To enrol it anew, remove it first: 'skerry devices remove {device_id}' "
                    f"(API: DELETE /v1/devices/{device_id}).",
                )
            repository.add(
                db, device_id, device_class=device_class, labels=labels, password_hash=hashed, at_ms=now
            )
            self._journal.audit(
                db,
                actor,
                "device.enrolled",
                f"device/{device_id}",
                {"labels": dict(labels), "class": device_class},
            )
        _notify(self.credential_observers)
        toml = config_toml.render(
            self._site, device=device_id, device_class=device_class, password=password, data_dir=data_dir
        )
        return Enrolled(id=device_id, device_class=device_class, labels=dict(labels), config_toml=toml)

    def remove(self, device_id: str, actor: str) -> None:
        """Its credential is void at once; its history stays. Raises `NotFoundError`."""
        now = self._clock.now_ms()
        with self._db.write() as db:
            if not repository.exists(db, device_id):
                raise _no_device(device_id)
            repository.remove(db, device_id, now)
            desired.queue(db, device_id, 0, b"", now)
            self._journal.audit(db, actor, "device.removed", f"device/{device_id}")
        _notify(self.credential_observers)
        _notify(self.outbox_observers)

    def credentials(self) -> dict[str, str]:
        """User names and password hashes, for the broker."""
        with self._db.read() as db:
            return repository.credentials(db)

    # --- what is known ---

    def devices(
        self, *, labels: Mapping[str, str] | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page[DeviceView]:
        """By id."""
        after = None if cursor is None else cursors.decode(cursor, str)
        with self._db.read() as db:
            rows = repository.page(db, after=after, limit=cursors.check_limit(limit) + 1, labels=labels)
            found: list[DeviceView] = [_pick(DeviceView, row) for row in _extended(db, rows)]
        return cursors.page(found, limit, lambda view: view.id)

    def device(self, device_id: str) -> DeviceDetail:
        """Raises `NotFoundError`."""
        with self._db.read() as db:
            row = repository.row(db, device_id)
            if row is None:
                raise _no_device(device_id)
            found: DeviceView = _pick(DeviceView, _extended(db, [row])[0])
            ran = placements.page(db, device=device_id, limit=PLACEMENTS_SHOWN)
            more = {"device": found, "placements": [_pick(PlacementView, item) for item in ran]}
            detail: DeviceDetail = _pick(DeviceDetail, {**row, **more})
            return detail

    def placements(
        self,
        *,
        device: str | None = None,
        model: str | None = None,
        version: str | None = None,
        at_ms: int | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page[PlacementView]:
        """What ran where, from when to when; newest first. Only what matches all that is given."""
        before = None if cursor is None else cursors.decode(cursor, int)
        wanted = cursors.check_limit(limit) + 1
        with self._db.read() as db:
            rows = placements.page(
                db, device=device, model=model, of_version=version, at_ms=at_ms, before=before, limit=wanted
            )
        found: list[PlacementView] = [_pick(PlacementView, row) for row in rows]
        return cursors.page(found, limit, lambda view: view.id)

    def ids(self, db: sa.Connection, labels: Mapping[str, str]) -> list[str]:
        """Every device that carries all of the labels."""
        return repository.ids(db, labels)

    def presence_counts(self) -> dict[str, int]:
        """Devices by presence; the empty one was never seen."""
        with self._db.read() as db:
            return repository.presence_counts(db)

    # --- what devices say ---

    def record_hello(self, device_id: str, hello: Hello) -> None:
        """Raises `NotFoundError`: no such device, or a removed one."""
        now = self._clock.now_ms()
        with self._db.write() as db:
            row = repository.row(db, device_id)
            if row is None:
                raise _no_device(device_id)
            repository.record_hello(db, device_id, hello, now)
            self._catch_up(db, device_id, hello.desired_revision)
        _notify(self.outbox_observers)
        _notify(self.change_observers)

    def record_presence(self, device_id: str, message: PresenceMessage) -> None:
        """Raises `NotFoundError`: no such device, or a removed one."""
        with self._db.write() as db:
            if not repository.exists(db, device_id):
                raise _no_device(device_id)
            repository.record_presence(db, device_id, message, self._clock.now_ms())
        _notify(self.change_observers)

    def record_report(self, device_id: str, report: UpdateReport) -> None:
        """Raises `NotFoundError`: no such device, or a removed one."""
        with self._db.write() as db:
            if not repository.exists(db, device_id):
                raise _no_device(device_id)
            if not repository.record_report(db, device_id, _bounded(report), self._clock.now_ms()):
                return
            for observer in self.report_observers:
                observer(db, device_id, report)
            for model, told in report.models.items():
                self._answer_failure(db, device_id, model, told, report.revision)
            self._catch_up(db, device_id, report.revision)
        _notify(self.outbox_observers)
        _notify(self.change_observers)

    # --- what is desired ---

    def set_desired(
        self,
        db: sa.Connection,
        device_id: str,
        model: str,
        digest: str | None,
        *,
        rollout: str = "",
        probation: Probation | None = None,
        jitter_s: float = 0.0,
    ) -> int:
        """Desire a bundle of a device, or with None nothing more of that model. Returns the new revision."""
        now = self._clock.now_ms()
        before = desired.offer_of(desired.current(db, device_id, model))
        revision = desired.next_revision(db, device_id)
        if digest is None:
            desired.drop(db, device_id, model)
        else:
            values = {
                "digest": digest,
                "revision": revision,
                "rollout": rollout,
                "probation": msgspec.to_builtins(probation or Probation()),
                "jitter_s": jitter_s,
                "since_ms": now,
                "before": before if before and before["digest"] != digest else None,
            }
            desired.put(db, device_id, model, values)
        self._sign(db, device_id, revision)
        self._journal.event(
            db,
            device_id,
            "desired.changed",
            model=model,
            digest=digest or "",
            data={"revision": revision, "rollout": rollout},
        )
        return revision

    def set_back(self, db: sa.Connection, device_id: str, model: str, away_from: str) -> str | None:
        """If ``away_from`` is desired, desire what the device had before; returns that.

        Was it tried, that is the device's own previous healthy digest. Was it not, as on a device that is
        offline, it is what was desired before, with its rollout: the device may not have come that far yet.
        """
        row = desired.current(db, device_id, model)
        previous = placements.previous_healthy(db, device_id, model, away_from)
        if row is None or row["digest"] != away_from:
            return previous
        before: dict[str, Any] | None = row["before"]
        tried = placements.ran_since(db, device_id, model, away_from, row["since_ms"])
        if before is None or tried or desired.is_quarantined(db, before["digest"]):
            self.set_desired(db, device_id, model, previous)
            return previous
        probation = msgspec.convert(before["probation"], Probation)
        rollout, jitter_s = before["rollout"], before["jitter_s"]
        self.set_desired(
            db, device_id, model, before["digest"], rollout=rollout, probation=probation, jitter_s=jitter_s
        )
        return str(before["digest"])

    def previous_healthy(self, db: sa.Connection, device_id: str, model: str, other_than: str) -> str | None:
        """The last digest but ``other_than`` that ran well on this device."""
        return placements.previous_healthy(db, device_id, model, other_than)

    def sign_again(self, batch: int = 200) -> int:
        """Renew desired states before half of their life is left. Returns how many."""
        with self._db.write() as db:
            due = desired.expiring(db, self._clock.now_ms() + self._ttl_ms // 2, batch)
            for device_id in due:
                self._sign(db, device_id, desired.next_revision(db, device_id))
        if due:
            _notify(self.outbox_observers)
        return len(due)

    def notify_outbox(self) -> None:
        """To be called after a transaction that changed what is desired."""
        _notify(self.outbox_observers)

    def outbox(self, limit: int = 500) -> list[OutboxRow]:
        """What waits to be published, oldest first."""
        with self._db.read() as db:
            return desired.outbox_rows(db, limit)

    def outbox_done(self, seqs: Sequence[int]) -> None:
        """The broker has acknowledged these rows."""
        with self._db.write() as db:
            desired.outbox_done(db, seqs)

    def _sign(self, db: sa.Connection, device_id: str, revision: int) -> None:
        now = self._clock.now_ms()
        rows = list(desired.of_devices(db, [device_id]))
        state = DesiredState(
            device=device_id,
            revision=revision,
            expires=now + self._ttl_ms,
            models={row["model"]: desired.to_message(row) for row in rows},
            rollout=rows[-1]["rollout"] if rows else "",
        )
        envelope = self._director.sign(state)
        desired.store(db, device_id, revision, expires_ms=state.expires, envelope=envelope, at_ms=now)

    def _catch_up(self, db: sa.Connection, device_id: str, seen: int) -> None:
        """Answer a device that has seen another revision than the newest."""
        row = repository.row(db, device_id)
        assert row is not None  # noqa: S101 looked up in this transaction
        newest: int = row["desired_revision"]
        if newest < seen < MAX_REVISION:
            # This database is older than the device's memory, as after a restore: go on above what it saw.
            repository.note_revision(db, device_id, seen)
            self._sign(db, device_id, desired.next_revision(db, device_id))
        elif seen < newest:
            desired.queue_again(db, device_id, self._clock.now_ms())

    def is_stuck(self, db: sa.Connection, device_id: str, model: str, told: ModelReport) -> bool:
        """Whether a device gave up what it was set back to after a failure: going on would go in circles."""
        if told.phase not in _FAILED or told.target is None:
            return False
        row = desired.current(db, device_id, model)
        return row is not None and row["digest"] == told.target and bool((row["before"] or {}).get("failed"))

    def _answer_failure(
        self, db: sa.Connection, device_id: str, model: str, told: ModelReport, revision: int
    ) -> None:
        """A device that gave a bundle up is not asked for it again: its previous one is desired from now
        on."""
        if told.phase not in _FAILED or told.target is None:
            return
        row = desired.current(db, device_id, model)
        if row is None or row["digest"] != told.target or revision < row["revision"]:
            return
        if self.is_stuck(db, device_id, model, told):
            return
        previous = self.set_back(db, device_id, model, told.target)
        desired.mark_failed(db, device_id, model)
        self._journal.event(
            db,
            device_id,
            f"update.{told.phase}",
            model=model,
            digest=told.target,
            data={"version": told.target_version, "set_back_to": previous or ""},
            error=told.error,
        )
        self._journal.audit(
            db,
            FLEET,
            "device.set_back",
            f"device/{device_id}",
            {"model": model, "from": told.target, "to": previous or "", "because": told.phase},
        )


def _extended(db: sa.Connection, rows: Sequence[sa.RowMapping]) -> list[dict[str, Any]]:
    """Rows of devices, each with its labels, desired and reported models."""
    ids = [row["id"] for row in rows]
    labels = repository.labels_of(db, ids)
    wished: dict[str, dict[str, DesiredView]] = {device_id: {} for device_id in ids}
    for item in desired.of_devices(db, ids):
        wished[item["device"]][item["model"]] = _pick(DesiredView, item)
    told: dict[str, dict[str, ReportedView]] = {device_id: {} for device_id in ids}
    for item in repository.reported_of(db, ids):
        told[item["device"]][item["model"]] = views.reported(item)
    extra = [{"labels": labels[key], "desired": wished[key], "reported": told[key]} for key in ids]
    return [{**row, **more} for row, more in zip(rows, extra, strict=True)]


def _pick(kind: Any, row: Mapping[Any, Any]) -> Any:
    """A view from the columns of the same names."""
    return kind(**{name: row[name] for name in kind.__dataclass_fields__})


def _bounded(report: UpdateReport) -> UpdateReport:
    """The fleet computes with a device's revision: an absurd one counts as none."""
    if 0 <= report.revision < MAX_REVISION:
        return report
    return UpdateReport(revision=0, epoch=report.epoch, models=report.models)


def _check_names(device_id: str, labels: Mapping[str, str], device_class: str) -> None:
    try:
        check_id(device_id)
    except MessageError as error:
        raise InputError(error.message, hint=error.hint) from error
    if len(labels) > MAX_LABELS:
        raise InputError(f"a device has at most {MAX_LABELS} labels")
    for label, value in labels.items():
        if not _LABEL.fullmatch(label) or not 0 < len(value) <= 128:
            raise InputError(
                f"the label {label[:80]!r} cannot be used",
                hint="A label is 1 to 63 letters, digits, '.', '_', '/' or '-'; its value has 1 to 128.",
            )
    if len(device_class) > 64:
        raise InputError("a device class has at most 64 characters")


def _no_device(device_id: str) -> NotFoundError:
    return NotFoundError(
        f"there is no device {device_id[:80]!r}",
        hint="'skerry devices list' shows them (API: GET /v1/devices).",
    )


def _notify(observers: Sequence[Callable[[], None]]) -> None:
    for observer in observers:
        observer()
