"""The registry of models: nothing enters that is not signed by a trusted engineer, and nothing changes after.

Blobs are durable before the row that names them, so that whatever is listed can be downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import sqlalchemy as sa

from skerry_contract.bundle import BundleReader
from skerry_contract.digests import Digest, digest_of, parse_digest
from skerry_contract.errors import ConflictError, NotFoundError, SignatureError
from skerry_contract.limits import Limits
from skerry_contract.manifest import Manifest, Variant, bundle_digest, parse_manifest
from skerry_contract.monitoring import MonitoringSpec, parse_spec
from skerry_contract.signing import EcdsaVerifier, verify_bundle

from .. import cursors
from ..blobs import BlobStore
from ..clock import Clock
from ..cursors import Page
from ..db import Database
from ..governance.service import Journal
from . import repository
from .views import ModelRow, VersionRow


@dataclass(frozen=True, slots=True)
class Published:
    """What a publish came to; ``created`` is False if the same bundle was there already."""

    version: VersionRow
    created: bool


class ModelService:
    def __init__(
        self,
        db: Database,
        blobs: BlobStore,
        clock: Clock,
        journal: Journal,
        engineers: Sequence[EcdsaVerifier],
        limits: Limits,
    ) -> None:
        self._db = db
        self._blobs = blobs
        self._clock = clock
        self._journal = journal
        self._engineers = engineers
        self._limits = limits
        self._downloadable: set[str] = set()

    def publish(self, stream: BinaryIO, actor: str) -> Published:
        """Verify a bundle, store its blobs, list it.

        Raises:
            BundleError: unsigned, not by a trusted engineer, altered, truncated, outside its schema.
            ConflictError: the version or the release has other bytes already.
            StorageError: the disk is full or failing; nothing was published.
        """
        reader = BundleReader(stream, self._limits)
        manifest = verify_bundle(reader.manifest_bytes, reader.signature, self._engineers, self._limits)
        digest = bundle_digest(reader.manifest_bytes)
        with self._db.read() as db:
            known = self._known(db, manifest, digest)
        with self._blobs.staging() as staging:
            sizes = {ref.digest: staging.put(ref.digest, pieces) for ref, pieces in reader.blobs(manifest)}
            if known is not None:
                return Published(known, created=False)
            sizes[staging.put_bytes(reader.manifest_bytes)] = len(reader.manifest_bytes)
            sizes[staging.put_bytes(reader.signature)] = len(reader.signature)
            # One byte more than a spec may have: enough to be refused, whatever the blob's size.
            parse_spec(staging.read(manifest.monitoring.digest, 4 * self._limits.manifest_bytes + 1))
            staging.commit()
        row = self._row(reader, manifest, digest)
        with self._db.write() as db:
            known = self._known(db, manifest, digest)
            if known is not None:
                return Published(known, created=False)
            repository.add_version(db, row, manifest, sizes)
            self._journal.audit(
                db,
                actor,
                "model.published",
                f"model/{manifest.name}",
                {
                    "version": manifest.version,
                    "release": manifest.release,
                    "digest": digest,
                    "signer": row.signer,
                },
            )
        return Published(row, created=True)

    def models(self, *, cursor: str | None = None, limit: int = 100) -> Page[ModelRow]:
        """By name."""
        after = None if cursor is None else cursors.decode(cursor, str)
        with self._db.read() as db:
            rows = repository.models_page(db, after=after, limit=cursors.check_limit(limit) + 1)
        return cursors.page(rows, limit, lambda row: row.name)

    def versions(self, name: str, *, cursor: str | None = None, limit: int = 100) -> Page[VersionRow]:
        """Newest release first. Raises `NotFoundError`: no such model."""
        before = None if cursor is None else cursors.decode(cursor, int)
        with self._db.read() as db:
            if not repository.model_exists(db, name):
                raise _no_model(name)
            rows = repository.versions_page(db, name, before=before, limit=cursors.check_limit(limit) + 1)
        return cursors.page(rows, limit, lambda row: row.release)

    def find(self, db: sa.Connection, name: str, version: str) -> VersionRow:
        """Raises `NotFoundError`: no such model or version."""
        row = repository.by_version(db, name, version)
        if row is not None:
            return row
        if not repository.model_exists(db, name):
            raise _no_model(name)
        raise NotFoundError(
            f"{name} has no version {version}",
            hint=f"'skerry models list' shows what is published (API: GET /v1/models/{name}/versions).",
        )

    def get(self, digest: str) -> VersionRow:
        """Raises `NotFoundError`: no such bundle."""
        with self._db.read() as db:
            row = repository.by_digest(db, digest)
        if row is None:
            raise NotFoundError(f"no bundle {digest} was published")
        return row

    def manifest(self, digest: Digest) -> Manifest:
        """The verified manifest of a published bundle. Raises `NotFoundError`."""
        return parse_manifest(self._blobs.read(self.get(digest).digest), self._limits)

    def monitoring(self, digest: Digest) -> MonitoringSpec:
        """The monitoring spec of a published bundle. Raises `NotFoundError`."""
        return parse_spec(self._blobs.read(self.get(digest).monitoring_digest))

    def quarantine(self, db: sa.Connection, digest: str, reason: str) -> None:
        """No rollout of this bundle starts from now on; only a new release brings the model back."""
        row = repository.by_digest(db, digest)
        if row is None or row.quarantined_ms is not None:
            return
        repository.quarantine(db, digest, at_ms=self._clock.now_ms(), reason=reason)
        self._journal.audit(
            db, "fleet", "model.quarantined", f"model/{row.name}", {"version": row.version, "reason": reason}
        )

    def read_block(self, digest: str, offset: int, size: int) -> bytes:
        """Bytes of a published blob; fewer than ``size`` at its end.

        Raises:
            InputError: no digest.
            NotFoundError: no published bundle lists that blob.
        """
        wanted = parse_digest(digest)
        if wanted not in self._downloadable:
            with self._db.read() as db:
                if not repository.listed_artifacts(db, [wanted]):
                    raise NotFoundError(f"no published bundle has a blob {wanted}")
            # What was published stays so: a positive answer may be kept.
            self._downloadable.add(wanted)
        return self._blobs.read(wanted, offset, size)

    def _known(self, db: sa.Connection, manifest: Manifest, digest: Digest) -> VersionRow | None:
        """The same bundle, if it is there. Raises `ConflictError`: another one has its version or release."""
        for row, what in (
            (repository.by_version(db, manifest.name, manifest.version), f"version {manifest.version}"),
            (repository.by_release(db, manifest.name, manifest.release), f"release {manifest.release}"),
        ):
            if row is not None and row.digest != digest:
                raise ConflictError(
                    f"{manifest.name} {what} was published already, with other content",
                    hint="A published version never changes: pack with a new version and a higher release.",
                )
        return repository.by_digest(db, digest)

    def _row(self, reader: BundleReader, manifest: Manifest, digest: Digest) -> VersionRow:
        return VersionRow(
            digest=digest,
            name=manifest.name,
            version=manifest.version,
            release=manifest.release,
            size=sum(ref.size for ref in manifest.blobs()),
            variants=[_variant_view(manifest, variant) for variant in manifest.variants],
            signer=self._signer(reader),
            published_ms=self._clock.now_ms(),
            quarantined_ms=None,
            quarantine_reason="",
            manifest_size=len(reader.manifest_bytes),
            signature_digest=digest_of(reader.signature),
            signature_size=len(reader.signature),
            monitoring_digest=manifest.monitoring.digest,
        )

    def _signer(self, reader: BundleReader) -> str:
        """The id of the key whose signature verifies, which is not always the one that the file names."""
        for engineer in self._engineers:
            try:
                verify_bundle(reader.manifest_bytes, reader.signature, [engineer], self._limits)
            except SignatureError:
                continue
            return engineer.key_id
        raise SignatureError("not signed by a trusted key")


def _variant_view(manifest: Manifest, variant: Variant) -> Mapping[str, Any]:
    return {
        "id": variant.id,
        "engine": variant.engine,
        "model_bytes": variant.model.size,
        "download_bytes": sum(ref.size for ref in manifest.blobs_for(variant)),
        "ram_bytes": variant.requires.ram_bytes,
        "profiles": list(variant.profiles),
    }


def _no_model(name: str) -> NotFoundError:
    return NotFoundError(
        f"there is no model {name!r}",
        hint="'skerry models list' shows them (API: GET /v1/models); 'skerry publish' brings one.",
    )
