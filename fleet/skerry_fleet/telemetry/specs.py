"""From what a window summary names (8 bytes of a bundle's digest) to what it was made under."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from skerry_contract.digests import Digest, prefix8
from skerry_contract.errors import NotFoundError
from skerry_contract.monitoring import MonitoringSpec

from ..db import Database
from ..models.service import ModelService
from ..models.tables import version

_KEPT: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A published bundle, as far as monitoring is concerned."""

    digest: Digest
    model: str
    version: str
    spec: MonitoringSpec
    spec_hash: bytes


class References:
    """Looked up once: what was published never changes."""

    def __init__(self, db: Database, models: ModelService) -> None:
        self._db = db
        self._models = models
        self._known: dict[bytes, Reference] = {}

    def find(self, bundle: bytes) -> Reference:
        """Raises `NotFoundError`: no published bundle begins with these 8 bytes."""
        found = self._known.get(bundle)
        if found is None:
            found = self._look_up(bundle)
            if len(self._known) >= _KEPT:
                self._known.pop(next(iter(self._known)))
            self._known[bundle] = found
        return found

    def _look_up(self, bundle: bytes) -> Reference:
        low = f"sha256:{bundle.hex()}"
        query = sa.select(version.c.digest, version.c.model, version.c.version, version.c.monitoring_digest)
        with self._db.read() as db:
            # 'g' is behind every hexadecimal digit: a range of the primary key.
            rows = db.execute(query.where(version.c.digest >= low, version.c.digest < f"{low}g")).all()
        if len(rows) != 1:
            raise NotFoundError(
                f"no published bundle begins with {low}", hint="Publish the bundle to this fleet."
            )
        row = rows[0]
        return Reference(
            digest=Digest(row.digest),
            model=row.model,
            version=row.version,
            spec=self._models.monitoring(Digest(row.digest)),
            # A spec's hash is the first 8 bytes of its blob's SHA-256.
            spec_hash=prefix8(Digest(row.monitoring_digest)),
        )
