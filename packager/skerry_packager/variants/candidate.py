"""What a generator returns: a candidate, or the reason why there is none. Never a silent no-op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One form of the model, not yet judged."""

    name: str
    data: bytes
    """The ONNX file."""
    recipe: Mapping[str, Any]
    """Enough to make it again; JSON values only."""
    note: str = ""
    quantized_compute: bool = False
    """Whether it calculates in integers, so that its outputs may differ between machines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """No candidate, and why."""

    name: str
    reason: str
    recipe: Mapping[str, Any] = field(default_factory=dict)


Outcome = Candidate | Skipped
