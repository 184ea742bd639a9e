"""Tables of telemetry: one in the control database, the others in every daily file.

Daily files have rowid tables: WITHOUT ROWID with a blob is three times slower. Retention unlinks them.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from ..db import metadata

event_mark = sa.Table(
    "event_mark",
    metadata,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("stream", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
    comment="up to where the events of a device's outbox are in the event table; moved with them",
)

clock_offset = sa.Table(
    "clock_offset",
    metadata,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("boot", sa.Text, primary_key=True),
    sa.Column("offset_ms", sa.BigInteger, nullable=False, comment="milliseconds since 1970 at the boot"),
    sa.Column("mono_ms", sa.BigInteger, nullable=False, comment="since boot, when it was measured"),
    sa.Column("records", sa.Integer, nullable=False, comment="how often it was told anew"),
    sa.Column("received_ms", sa.BigInteger, nullable=False),
    comment="by which the times of a boot are repaired",
)

DAY_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS window (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    device TEXT NOT NULL,
    stream BLOB NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    boot TEXT NOT NULL,
    seq INTEGER NOT NULL,        -- of the window, counted by the device within its boot
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    digest TEXT NOT NULL,
    at_ms INTEGER NOT NULL,      -- where the window is placed in time
    clock_ok INTEGER NOT NULL,   -- 1: by the device's clock, or repaired; 0: reckoned from the arrival
    duration_ms INTEGER NOT NULL,
    flags INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    body BLOB NOT NULL,          -- the window summary as it came
    severity TEXT,               -- NULL: not scored yet; '': nothing; '-': too few rows yet, or out of order
    scores BLOB                  -- drift scores, JSON
);
CREATE UNIQUE INDEX IF NOT EXISTS window_key ON window (device, stream, first);
CREATE INDEX IF NOT EXISTS window_time ON window (at_ms);
CREATE INDEX IF NOT EXISTS window_device_time ON window (device, at_ms);
CREATE INDEX IF NOT EXISTS window_unscored ON window (id) WHERE severity IS NULL;
CREATE TABLE IF NOT EXISTS refused (
    id INTEGER PRIMARY KEY,
    device TEXT NOT NULL,
    stream BLOB NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    code TEXT NOT NULL,
    reason TEXT NOT NULL,
    received_ms INTEGER NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (device, stream, first)
);
CREATE TABLE IF NOT EXISTS mark (
    device TEXT NOT NULL,
    stream BLOB NOT NULL,
    seq INTEGER NOT NULL,        -- everything of the stream up to here is committed
    updated_ms INTEGER NOT NULL,
    PRIMARY KEY (device, stream)
);
CREATE TABLE IF NOT EXISTS detector (
    device TEXT NOT NULL,
    model TEXT NOT NULL,
    state BLOB NOT NULL,
    updated_ms INTEGER NOT NULL,
    PRIMARY KEY (device, model)
);
CREATE TABLE IF NOT EXISTS carried (day TEXT PRIMARY KEY);
"""
