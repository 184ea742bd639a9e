"""The fleet server: registry, desired state, rollouts, ingest, drift, overview."""

from __future__ import annotations
