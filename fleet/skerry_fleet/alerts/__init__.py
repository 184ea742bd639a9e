"""Alerts: what a person should look at, once, until it is over."""

from __future__ import annotations
