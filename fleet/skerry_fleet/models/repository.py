"""Rows of the registry."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from skerry_contract.digests import Digest
from skerry_contract.manifest import Manifest

from .tables import artifact, model, version, version_artifact
from .views import ModelRow, VersionRow

_VERSION = sa.select(
    *[version.c[name] for name in VersionRow.__dataclass_fields__ if name != "name"],
    version.c.model.label("name"),
)


def by_digest(db: sa.Connection, digest: str) -> VersionRow | None:
    return _one(db, _VERSION.where(version.c.digest == digest))


def by_version(db: sa.Connection, name: str, text: str) -> VersionRow | None:
    return _one(db, _VERSION.where(version.c.model == name, version.c.version == text))


def by_release(db: sa.Connection, name: str, release: int) -> VersionRow | None:
    return _one(db, _VERSION.where(version.c.model == name, version.c.release == release))


def versions_page(db: sa.Connection, name: str, *, before: int | None, limit: int) -> list[VersionRow]:
    """Newest release first."""
    query = _VERSION.where(version.c.model == name).order_by(version.c.release.desc()).limit(limit)
    if before is not None:
        query = query.where(version.c.release < before)
    return [VersionRow(**row) for row in map(dict, db.execute(query).mappings())]


def models_page(db: sa.Connection, *, after: str | None, limit: int) -> list[ModelRow]:
    """By name."""
    newest = (
        sa.select(
            version.c.model,
            sa.func.max(version.c.release).label("release"),
            sa.func.count().label("versions"),
        )
        .group_by(version.c.model)
        .subquery()
    )
    query = (
        sa.select(
            model.c.name,
            model.c.task,
            newest.c.versions,
            version.c.version.label("latest_version"),
            version.c.release.label("latest_release"),
            version.c.digest.label("latest_digest"),
        )
        .join(newest, newest.c.model == model.c.name)
        .join(version, (version.c.model == newest.c.model) & (version.c.release == newest.c.release))
        .order_by(model.c.name)
        .limit(limit)
    )
    if after is not None:
        query = query.where(model.c.name > after)
    return [ModelRow(**row) for row in map(dict, db.execute(query).mappings())]


def model_exists(db: sa.Connection, name: str) -> bool:
    return db.execute(sa.select(model.c.name).where(model.c.name == name)).first() is not None


def add_version(
    db: sa.Connection, row: VersionRow, manifest: Manifest, artifacts: Mapping[Digest, int]
) -> None:
    """A new version and every blob that it makes available."""
    if not model_exists(db, row.name):
        db.execute(model.insert().values(name=row.name, task=manifest.task, created_ms=row.published_ms))
    fields = {name: getattr(row, name) for name in VersionRow.__dataclass_fields__ if name != "name"}
    db.execute(version.insert().values(model=row.name, **fields))
    known = listed_artifacts(db, artifacts)
    fresh = [{"digest": digest, "size": size} for digest, size in artifacts.items() if digest not in known]
    if fresh:
        db.execute(artifact.insert(), fresh)
    db.execute(
        version_artifact.insert(), [{"version": row.digest, "artifact": digest} for digest in artifacts]
    )


def listed_artifacts(db: sa.Connection, digests: Collection[str] | None = None) -> set[str]:
    """Of these digests, or of all, those that a published bundle lists."""
    query = sa.select(artifact.c.digest)
    if digests is not None:
        query = query.where(artifact.c.digest.in_(list(digests)))
    return set(db.execute(query).scalars())


def quarantine(db: sa.Connection, digest: str, *, at_ms: int, reason: str) -> None:
    """Mark a version; an earlier mark stays."""
    db.execute(
        version.update()
        .where(version.c.digest == digest, version.c.quarantined_ms.is_(None))
        .values(quarantined_ms=at_ms, quarantine_reason=reason)
    )


def _one(db: sa.Connection, query: sa.Select[Any]) -> VersionRow | None:
    row = db.execute(query).mappings().first()
    return None if row is None else VersionRow(**row)
