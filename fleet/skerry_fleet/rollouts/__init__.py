"""Rollouts: a version goes to a group of devices in waves, and back if it fails."""

from __future__ import annotations
