"""What proves that the daemon does its work, read from its parts; what of it must move is in `notify`.

Called in the loop's thread, so that the loop's own life is part of every proof.
"""

from __future__ import annotations

from typing import Final

from skerry_contract.messages import Acknowledge

from .fleet import Fleet
from .models import Models
from .telemetry import OutboxStatus, Telemetry

_NO_STREAM: Final = Acknowledge(stream="", seq=0)


class VitalSigns:
    """See the module's text."""

    def __init__(self, models: Models, telemetry: Telemetry, fleet: Fleet) -> None:
        self._models, self._telemetry, self._fleet = models, telemetry, fleet
        self._outbox: OutboxStatus = telemetry.status()
        self._turns = 0

    def evidence(self) -> dict[str, object]:
        """By name, a mark that changes with every proof of life.

        A worker proves itself by golden samples that came out right beside the traffic; one that is dead
        and being replaced is the agent's to repair. The outbox proves itself by a turn of its thread: it
        committed what it held, or it says what the disk says.
        """
        marks: dict[str, object] = {}
        for model in self._models:
            worker = model.serving.worker
            if worker is not None:
                marks[f"model {model.name}, worker {worker.number}"] = (
                    worker.health.canaries if worker.health else 0
                )
        status = self._telemetry.status()
        if status is not self._outbox:
            self._outbox = status
            self._turns += 1
        marks["outbox"] = self._turns
        return marks

    def probe(self) -> None:
        """Send nothing through the outbox: it goes the whole way and writes nothing, so it wears no flash."""
        self._telemetry.acknowledged(_NO_STREAM)

    def starting(self) -> bool:
        """Something that is installed and is to answer does not answer yet."""
        return any(model.serving.answering and not model.serving.worker for model in self._models)

    def words(self) -> str:
        """One line for ``systemctl status``."""
        said = []
        for model in self._models:
            active = model.serving.answering
            if active is None:
                said.append(f"{model.name}: nothing answers")
            else:
                state = "answers" if model.serving.worker else "is being started"
                said.append(f"{model.name} {active.manifest.version} {state}")
        said.append(f"fleet {self._fleet.status()['state']}")
        if self._outbox.error:
            said.append(f"outbox: {self._outbox.error}")
        return "; ".join(said) if len(said) > 1 else f"no model yet; {said[0]}"
