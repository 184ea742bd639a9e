"""Tables of the registry."""

from __future__ import annotations

import sqlalchemy as sa

from ..db import metadata

model = sa.Table(
    "model",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)

version = sa.Table(
    "version",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True, comment="digest of manifest.json: the bundle's identity"),
    sa.Column("model", sa.Text, sa.ForeignKey("model.name"), nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("release", sa.BigInteger, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False, comment="of all blobs"),
    sa.Column("manifest_size", sa.BigInteger, nullable=False),
    sa.Column("signature_digest", sa.Text, nullable=False),
    sa.Column("signature_size", sa.BigInteger, nullable=False),
    sa.Column("signer", sa.Text, nullable=False, comment="key id"),
    sa.Column("monitoring_digest", sa.Text, nullable=False),
    sa.Column("variants", sa.JSON, nullable=False),
    sa.Column("published_ms", sa.BigInteger, nullable=False),
    sa.Column("quarantined_ms", sa.BigInteger),
    sa.Column("quarantine_reason", sa.Text, nullable=False, default=""),
    sa.UniqueConstraint("model", "version"),
    sa.UniqueConstraint("model", "release"),
)

artifact = sa.Table(
    "artifact",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    comment="what may be downloaded: every blob of a published bundle, manifest and signature too",
)

version_artifact = sa.Table(
    "version_artifact",
    metadata,
    sa.Column("version", sa.Text, sa.ForeignKey("version.digest"), primary_key=True),
    sa.Column("artifact", sa.Text, sa.ForeignKey("artifact.digest"), primary_key=True, index=True),
)
