"""Tables of rollouts."""

from __future__ import annotations

import sqlalchemy as sa

from ..db import metadata

rollout = sa.Table(
    "rollout",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("model", sa.Text, sa.ForeignKey("model.name"), nullable=False),
    sa.Column("digest", sa.Text, sa.ForeignKey("version.digest"), nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("wave", sa.Integer, nullable=False, default=1, comment="the current one, from 1"),
    sa.Column("selector", sa.JSON, nullable=False),
    sa.Column("probation", sa.JSON, nullable=False),
    sa.Column("jitter_s", sa.Float, nullable=False),
    sa.Column("deadline_s", sa.Float, nullable=False),
    sa.Column("max_failures", sa.Integer, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("finished_ms", sa.BigInteger),
    sa.Column("reason", sa.Text, nullable=False, default="", comment="why it is in this state"),
)

wave = sa.Table(
    "wave",
    metadata,
    sa.Column("rollout", sa.Text, sa.ForeignKey("rollout.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("reaches", sa.Text, nullable=False, comment="as asked for: '20%' or '5 devices'"),
    sa.Column("begun_ms", sa.BigInteger),
    sa.Column("verdict", sa.Text, comment="a Gate, the newest"),
    sa.Column("reasons", sa.JSON, nullable=False, default=list),
    sa.Column("verdict_ms", sa.BigInteger),
)

execution = sa.Table(
    "execution",
    metadata,
    sa.Column("rollout", sa.Text, sa.ForeignKey("rollout.id"), primary_key=True),
    sa.Column("device", sa.Text, sa.ForeignKey("device.id"), primary_key=True, index=True),
    sa.Column("wave", sa.Integer, nullable=False),
    sa.Column("bucket", sa.Text, nullable=False),
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("was_online", sa.Boolean, nullable=False, default=False, comment="when it was offered"),
    sa.Column("revision", sa.BigInteger, nullable=False, default=0, comment="desired revision of the offer"),
    sa.Column("previous", sa.Text, comment="the device's own previous healthy digest"),
    sa.Column("offered_ms", sa.BigInteger),
    sa.Column("progress_ms", sa.BigInteger, comment="last sign of progress; silence counts from here"),
    sa.Column("bytes_done", sa.BigInteger, nullable=False, default=0),
    sa.Column("finished_ms", sa.BigInteger),
    sa.Column("set_back_ms", sa.BigInteger, comment="when the fleet took the offer back"),
    sa.Column("error_code", sa.Text, nullable=False, default=""),
    sa.Column("error_message", sa.Text, nullable=False, default=""),
    sa.Index(None, "rollout", "wave", "phase"),
)

gate_evaluation = sa.Table(
    "gate_evaluation",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("rollout", sa.Text, sa.ForeignKey("rollout.id"), nullable=False, index=True),
    sa.Column("wave", sa.Integer, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("reasons", sa.JSON, nullable=False),
    comment="one row for every change of a verdict",
)
