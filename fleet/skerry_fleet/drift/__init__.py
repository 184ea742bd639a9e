"""Drift: windows against the reference that the bundle carries."""

from __future__ import annotations
