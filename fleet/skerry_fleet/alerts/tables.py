"""The table of alerts."""

from __future__ import annotations

import sqlalchemy as sa

from ..db import metadata

alert = sa.Table(
    "alert",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("severity", sa.Text, nullable=False),
    sa.Column("device", sa.Text, nullable=False, default="", comment="empty: not of one device"),
    sa.Column("model", sa.Text, nullable=False, default=""),
    sa.Column("cause", sa.Text, nullable=False, default="", comment="tells alerts of one kind apart"),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False, default=""),
    sa.Column("data", sa.JSON, nullable=False, default=dict),
    sa.Column("times", sa.Integer, nullable=False, default=1, comment="how often it was seen"),
    sa.Column("raised_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
    sa.Column("acknowledged_ms", sa.BigInteger),
    sa.Column("acknowledged_by", sa.Text, nullable=False, default=""),
    sa.Column("resolved_ms", sa.BigInteger),
    sa.Index(
        "uq_alert_open",
        "kind",
        "device",
        "model",
        "cause",
        unique=True,
        sqlite_where=sa.text("resolved_ms IS NULL"),
        postgresql_where=sa.text("resolved_ms IS NULL"),
    ),
    sa.Index(None, "device", "id"),
    sqlite_autoincrement=True,
)
