"""All tables of the control database: importing this file completes `db.metadata`."""

from __future__ import annotations

from .alerts import tables as alerts
from .devices import tables as devices
from .governance import tables as governance
from .models import tables as models
from .rollouts import tables as rollouts
from .telemetry import tables as telemetry

__all__ = ["alerts", "devices", "governance", "models", "rollouts", "telemetry"]
