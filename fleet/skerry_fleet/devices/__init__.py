"""Devices: who they are, what is desired of them, what they reported, what ran on them when."""

from __future__ import annotations
