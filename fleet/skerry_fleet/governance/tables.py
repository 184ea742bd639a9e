"""Tables of governance."""

from __future__ import annotations

import sqlalchemy as sa

from ..db import metadata

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("data", sa.Text, nullable=False, comment="canonical JSON, the bytes that are hashed"),
    sa.Column("previous", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    comment="append-only, each row bound to the one before by its hash",
)

event = sa.Table(
    "event",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("received_ms", sa.BigInteger, nullable=False),
    sa.Column("wall_ms", sa.BigInteger, nullable=False, comment="by the clock of who reports it"),
    sa.Column("source", sa.Text, nullable=False, comment="device or fleet"),
    sa.Column("boot", sa.Text, nullable=False, default=""),
    sa.Column("model", sa.Text, nullable=False, default=""),
    sa.Column("digest", sa.Text, nullable=False, default=""),
    sa.Column("data", sa.JSON, nullable=False, default=dict),
    sa.Column("error_code", sa.Text, nullable=False, default=""),
    sa.Column("error_message", sa.Text, nullable=False, default=""),
    sa.Column(
        "mono_ms",
        sa.BigInteger,
        nullable=False,
        server_default=sa.text("0"),
        comment="since the boot of who reports it",
    ),
    sa.Column(
        "clock_quality",
        sa.Integer,
        nullable=False,
        server_default=sa.text("0"),
        comment="what wall_ms is worth",
    ),
    sa.Column(
        "at_ms",
        sa.BigInteger,
        nullable=False,
        server_default=sa.text("0"),
        comment="where it is placed in time",
    ),
    sa.Column(
        "clock_ok",
        sa.Boolean,
        nullable=False,
        server_default=sa.text("0"),
        comment="at_ms is by the device's clock or repaired, not by the arrival",
    ),
    sa.Index(None, "device", "id"),
    sa.Index(None, "device", "boot"),
)
