"""The version of this distribution, as it was installed."""

from __future__ import annotations

from ..agent.machine import agent_version

VERSION = agent_version()
