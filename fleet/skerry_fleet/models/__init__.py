"""The registry: verified bundles, by model and version."""

from __future__ import annotations
