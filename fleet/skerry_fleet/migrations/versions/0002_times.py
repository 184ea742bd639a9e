"""When events happened, apart from what the device's clock said; the offsets of unset clocks.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "clock_offset",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("boot", sa.Text(), nullable=False),
        sa.Column(
            "offset_ms", sa.BigInteger(), nullable=False, comment="milliseconds since 1970 at the boot"
        ),
        sa.Column("mono_ms", sa.BigInteger(), nullable=False, comment="since boot, when it was measured"),
        sa.Column("records", sa.Integer(), nullable=False, comment="how often it was told anew"),
        sa.Column("received_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device", "boot", name=op.f("pk_clock_offset")),
        comment="by which the times of a boot are repaired",
    )
    for name, kind, comment in (
        ("mono_ms", sa.BigInteger(), "since the boot of who reports it"),
        ("clock_quality", sa.Integer(), "what wall_ms is worth"),
        ("at_ms", sa.BigInteger(), "where it is placed in time"),
        ("clock_ok", sa.Boolean(), "at_ms is by the device's clock or repaired, not by the arrival"),
    ):
        op.add_column(
            "event", sa.Column(name, kind, nullable=False, server_default=sa.text("0"), comment=comment)
        )
    op.execute("UPDATE event SET at_ms = received_ms, clock_ok = source = 'fleet'")
    op.create_index(op.f("ix_event_device_boot"), "event", ["device", "boot"], unique=False)
