"""Telemetry: what devices sent, stored once, a file a day."""

from __future__ import annotations
