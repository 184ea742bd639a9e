"""All tables of the first release.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# What is in the audit log stays as it is, whoever holds the connection.
APPEND_ONLY = """
CREATE TRIGGER audit_no_{verb} BEFORE {verb} ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END
"""


def upgrade() -> None:
    op.create_table(
        "alert",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False, comment="empty: not of one device"),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False, comment="tells alerts of one kind apart"),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False, comment="how often it was seen"),
        sa.Column("raised_ms", sa.BigInteger(), nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.Column("acknowledged_ms", sa.BigInteger(), nullable=True),
        sa.Column("acknowledged_by", sa.Text(), nullable=False),
        sa.Column("resolved_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_alert_device_id"), "alert", ["device", "id"], unique=False)
    op.create_index(
        "uq_alert_open",
        "alert",
        ["kind", "device", "model", "cause"],
        unique=True,
        sqlite_where=sa.text("resolved_ms IS NULL"),
        postgresql_where=sa.text("resolved_ms IS NULL"),
    )
    op.create_table(
        "artifact",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_artifact")),
        comment="what may be downloaded: every blob of a published bundle, manifest and signature too",
    )
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False, comment="canonical JSON, the bytes that are hashed"),
        sa.Column("previous", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit")),
        comment="append-only, each row bound to the one before by its hash",
    )
    op.create_table(
        "device",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("device_class", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("removed_ms", sa.BigInteger(), nullable=True),
        sa.Column("presence", sa.Text(), nullable=False, comment="a Presence, or empty: never seen"),
        sa.Column("presence_ms", sa.BigInteger(), nullable=False, comment="since when"),
        sa.Column("presence_until", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_ms", sa.BigInteger(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("boot", sa.Text(), nullable=False),
        sa.Column("agent_version", sa.Text(), nullable=False),
        sa.Column("hardware", sa.JSON(), nullable=True, comment="Hardware of the last hello"),
        sa.Column("engines", sa.JSON(), nullable=False),
        sa.Column("capabilities", sa.JSON(), nullable=False),
        sa.Column("clock_quality", sa.Integer(), nullable=False),
        sa.Column("reported_revision", sa.BigInteger(), nullable=False),
        sa.Column("desired_revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device")),
    )
    op.create_table(
        "event",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("received_ms", sa.BigInteger(), nullable=False),
        sa.Column("wall_ms", sa.BigInteger(), nullable=False, comment="by the clock of who reports it"),
        sa.Column("source", sa.Text(), nullable=False, comment="device or fleet"),
        sa.Column("boot", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("error_code", sa.Text(), nullable=False),
        sa.Column("error_message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
    )
    op.create_index(op.f("ix_event_device_id"), "event", ["device", "id"], unique=False)
    op.create_table(
        "event_mark",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device", "stream", name=op.f("pk_event_mark")),
        comment="up to where the events of a device's outbox are in the event table; moved with them",
    )
    op.create_table(
        "model",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_model")),
    )
    op.create_table(
        "outbox",
        sa.Column("seq", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False, comment="empty: clear the retained message"),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_outbox")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_outbox_device"), "outbox", ["device"], unique=False)
    op.create_table(
        "credential",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("username", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False, comment="as in a mosquitto password file"),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_credential_device_device")),
        sa.PrimaryKeyConstraint("device", name=op.f("pk_credential")),
        sa.UniqueConstraint("username", name=op.f("uq_credential_username")),
    )
    op.create_table(
        "desired_state",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_desired_state_device_device")),
        sa.PrimaryKeyConstraint("device", name=op.f("pk_desired_state")),
    )
    op.create_index(op.f("ix_desired_state_expires_ms"), "desired_state", ["expires_ms"], unique=False)
    op.create_table(
        "device_label",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_device_label_device_device")),
        sa.PrimaryKeyConstraint("device", "label", name=op.f("pk_device_label")),
    )
    op.create_index(
        op.f("ix_device_label_label_value_device"), "device_label", ["label", "value", "device"], unique=False
    )
    op.create_table(
        "placement",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("health", sa.Text(), nullable=False, comment="unknown, good or bad"),
        sa.Column("rollout", sa.Text(), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("to_ms", sa.BigInteger(), nullable=True, comment="null: it runs"),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_placement_device_device")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_placement")),
        comment="what ran where, from when to when; recorded from reports, by the server's clock",
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_placement_device_model_id"), "placement", ["device", "model", "id"], unique=False
    )
    op.create_table(
        "reported_model",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("active", sa.Text(), nullable=True),
        sa.Column("active_version", sa.Text(), nullable=False),
        sa.Column("active_variant", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=True),
        sa.Column("target_version", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=False),
        sa.Column("error_message", sa.Text(), nullable=False),
        sa.Column("error_hint", sa.Text(), nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False, comment="by the device's clock"),
        sa.Column("bytes_done", sa.BigInteger(), nullable=False),
        sa.Column("bytes_total", sa.BigInteger(), nullable=False),
        sa.Column("received_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_reported_model_device_device")),
        sa.PrimaryKeyConstraint("device", "model", name=op.f("pk_reported_model")),
    )
    op.create_table(
        "version",
        sa.Column(
            "digest", sa.Text(), nullable=False, comment="digest of manifest.json: the bundle's identity"
        ),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("release", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="of all blobs"),
        sa.Column("manifest_size", sa.BigInteger(), nullable=False),
        sa.Column("signature_digest", sa.Text(), nullable=False),
        sa.Column("signature_size", sa.BigInteger(), nullable=False),
        sa.Column("signer", sa.Text(), nullable=False, comment="key id"),
        sa.Column("monitoring_digest", sa.Text(), nullable=False),
        sa.Column("variants", sa.JSON(), nullable=False),
        sa.Column("published_ms", sa.BigInteger(), nullable=False),
        sa.Column("quarantined_ms", sa.BigInteger(), nullable=True),
        sa.Column("quarantine_reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name=op.f("fk_version_model_model")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_version")),
        sa.UniqueConstraint("model", "release", name=op.f("uq_version_model_release")),
        sa.UniqueConstraint("model", "version", name=op.f("uq_version_model_version")),
    )
    op.create_table(
        "desired_model",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False, comment="desired revision that brought it"),
        sa.Column("rollout", sa.Text(), nullable=False, comment="empty: set back"),
        sa.Column("probation", sa.JSON(), nullable=False),
        sa.Column("jitter_s", sa.Float(), nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.Column(
            "before",
            sa.JSON(none_as_null=True),
            nullable=True,
            comment="what was desired before, if it is taken back untried",
        ),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_desired_model_device_device")),
        sa.ForeignKeyConstraint(["digest"], ["version.digest"], name=op.f("fk_desired_model_digest_version")),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name=op.f("fk_desired_model_model_model")),
        sa.PrimaryKeyConstraint("device", "model", name=op.f("pk_desired_model")),
    )
    op.create_table(
        "rollout",
        sa.Column("seq", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False, comment="the current one, from 1"),
        sa.Column("selector", sa.JSON(), nullable=False),
        sa.Column("probation", sa.JSON(), nullable=False),
        sa.Column("jitter_s", sa.Float(), nullable=False),
        sa.Column("deadline_s", sa.Float(), nullable=False),
        sa.Column("max_failures", sa.Integer(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("finished_ms", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False, comment="why it is in this state"),
        sa.ForeignKeyConstraint(["digest"], ["version.digest"], name=op.f("fk_rollout_digest_version")),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name=op.f("fk_rollout_model_model")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_rollout")),
        sa.UniqueConstraint("id", name=op.f("uq_rollout_id")),
    )
    op.create_index(op.f("ix_rollout_state"), "rollout", ["state"], unique=False)
    op.create_table(
        "version_artifact",
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("artifact", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact"], ["artifact.digest"], name=op.f("fk_version_artifact_artifact_artifact")
        ),
        sa.ForeignKeyConstraint(
            ["version"], ["version.digest"], name=op.f("fk_version_artifact_version_version")
        ),
        sa.PrimaryKeyConstraint("version", "artifact", name=op.f("pk_version_artifact")),
    )
    op.create_index(op.f("ix_version_artifact_artifact"), "version_artifact", ["artifact"], unique=False)
    op.create_table(
        "execution",
        sa.Column("rollout", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("bucket", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("was_online", sa.Boolean(), nullable=False, comment="when it was offered"),
        sa.Column("revision", sa.BigInteger(), nullable=False, comment="desired revision of the offer"),
        sa.Column("previous", sa.Text(), nullable=True, comment="the device's own previous healthy digest"),
        sa.Column("offered_ms", sa.BigInteger(), nullable=True),
        sa.Column(
            "progress_ms",
            sa.BigInteger(),
            nullable=True,
            comment="last sign of progress; silence counts from here",
        ),
        sa.Column("bytes_done", sa.BigInteger(), nullable=False),
        sa.Column("finished_ms", sa.BigInteger(), nullable=True),
        sa.Column(
            "set_back_ms", sa.BigInteger(), nullable=True, comment="when the fleet took the offer back"
        ),
        sa.Column("error_code", sa.Text(), nullable=False),
        sa.Column("error_message", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"], name=op.f("fk_execution_device_device")),
        sa.ForeignKeyConstraint(["rollout"], ["rollout.id"], name=op.f("fk_execution_rollout_rollout")),
        sa.PrimaryKeyConstraint("rollout", "device", name=op.f("pk_execution")),
    )
    op.create_index(op.f("ix_execution_device"), "execution", ["device"], unique=False)
    op.create_index(
        op.f("ix_execution_rollout_wave_phase"), "execution", ["rollout", "wave", "phase"], unique=False
    )
    op.create_table(
        "gate_evaluation",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("rollout", sa.Text(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["rollout"], ["rollout.id"], name=op.f("fk_gate_evaluation_rollout_rollout")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gate_evaluation")),
        comment="one row for every change of a verdict",
    )
    op.create_index(op.f("ix_gate_evaluation_rollout"), "gate_evaluation", ["rollout"], unique=False)
    op.create_table(
        "wave",
        sa.Column("rollout", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("reaches", sa.Text(), nullable=False, comment="as asked for: '20%' or '5 devices'"),
        sa.Column("begun_ms", sa.BigInteger(), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=True, comment="a Gate, the newest"),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("verdict_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["rollout"], ["rollout.id"], name=op.f("fk_wave_rollout_rollout")),
        sa.PrimaryKeyConstraint("rollout", "number", name=op.f("pk_wave")),
    )
    for verb in ("UPDATE", "DELETE"):
        op.execute(APPEND_ONLY.format(verb=verb))
