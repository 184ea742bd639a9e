"""Who did what (audit, hash-chained) and what happened (events)."""

from __future__ import annotations
