"""Tables of devices. A removed device keeps its row: its revision must never go back, and history names
it."""

from __future__ import annotations

import sqlalchemy as sa

from ..db import metadata

device = sa.Table(
    "device",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("device_class", sa.Text, nullable=False, default=""),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("removed_ms", sa.BigInteger),
    sa.Column("presence", sa.Text, nullable=False, default="", comment="a Presence, or empty: never seen"),
    sa.Column("presence_ms", sa.BigInteger, nullable=False, default=0, comment="since when"),
    sa.Column("presence_until", sa.BigInteger, nullable=False, default=0),
    sa.Column("last_seen_ms", sa.BigInteger),
    sa.Column("epoch", sa.BigInteger, nullable=False, default=0),
    sa.Column("boot", sa.Text, nullable=False, default=""),
    sa.Column("agent_version", sa.Text, nullable=False, default=""),
    sa.Column("hardware", sa.JSON, comment="Hardware of the last hello"),
    sa.Column("engines", sa.JSON, nullable=False, default=list),
    sa.Column("capabilities", sa.JSON, nullable=False, default=list),
    sa.Column("clock_quality", sa.Integer, nullable=False, default=0),
    sa.Column("reported_revision", sa.BigInteger, nullable=False, default=0),
    sa.Column("desired_revision", sa.BigInteger, nullable=False, default=0),
)

device_label = sa.Table(
    "device_label",
    metadata,
    sa.Column("device", sa.Text, sa.ForeignKey("device.id"), primary_key=True),
    sa.Column("label", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.Index(None, "label", "value", "device"),
)

credential = sa.Table(
    "credential",
    metadata,
    sa.Column("device", sa.Text, sa.ForeignKey("device.id"), primary_key=True),
    sa.Column("username", sa.Text, nullable=False, unique=True),
    sa.Column("hash", sa.Text, nullable=False, comment="as in a mosquitto password file"),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)

desired_model = sa.Table(
    "desired_model",
    metadata,
    sa.Column("device", sa.Text, sa.ForeignKey("device.id"), primary_key=True),
    sa.Column("model", sa.Text, sa.ForeignKey("model.name"), primary_key=True),
    sa.Column("digest", sa.Text, sa.ForeignKey("version.digest"), nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False, comment="desired revision that brought it"),
    sa.Column("rollout", sa.Text, nullable=False, default="", comment="empty: set back"),
    sa.Column("probation", sa.JSON, nullable=False),
    sa.Column("jitter_s", sa.Float, nullable=False, default=0.0),
    sa.Column("since_ms", sa.BigInteger, nullable=False),
    sa.Column(
        "before", sa.JSON(none_as_null=True), comment="what was desired before, if it is taken back untried"
    ),
)

desired_state = sa.Table(
    "desired_state",
    metadata,
    sa.Column("device", sa.Text, sa.ForeignKey("device.id"), primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("expires_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("device", sa.Text, nullable=False, index=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False, comment="empty: clear the retained message"),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

reported_model = sa.Table(
    "reported_model",
    metadata,
    sa.Column("device", sa.Text, sa.ForeignKey("device.id"), primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("active", sa.Text),
    sa.Column("active_version", sa.Text, nullable=False, default=""),
    sa.Column("active_variant", sa.Text, nullable=False, default=""),
    sa.Column("target", sa.Text),
    sa.Column("target_version", sa.Text, nullable=False, default=""),
    sa.Column("phase", sa.Text),
    sa.Column("error_code", sa.Text, nullable=False, default=""),
    sa.Column("error_message", sa.Text, nullable=False, default=""),
    sa.Column("error_hint", sa.Text, nullable=False, default=""),
    sa.Column("since_ms", sa.BigInteger, nullable=False, default=0, comment="by the device's clock"),
    sa.Column("bytes_done", sa.BigInteger, nullable=False, default=0),
    sa.Column("bytes_total", sa.BigInteger, nullable=False, default=0),
    sa.Column("received_ms", sa.BigInteger, nullable=False),
)

placement = sa.Table(
    "placement",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("device", sa.Text, sa.ForeignKey("device.id"), nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("health", sa.Text, nullable=False, comment="unknown, good or bad"),
    sa.Column("rollout", sa.Text, nullable=False, default=""),
    sa.Column("from_ms", sa.BigInteger, nullable=False),
    sa.Column("to_ms", sa.BigInteger, comment="null: it runs"),
    sa.Index(None, "device", "model", "id"),
    sqlite_autoincrement=True,
    comment="what ran where, from when to when; recorded from reports, by the server's clock",
)
