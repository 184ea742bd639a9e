"""A metric of the engineer's own: ``module:function(labels, outputs) -> float``.

``labels`` holds the labels of all rows (None if there are none), ``outputs`` the model's outputs by name,
rows on axis 0. Higher is better, from 0 to 1, unless the function has a true attribute ``lower_is_better``;
then the drop is the growth of its value over fp32's. It is called some hundreds of times on resampled rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skerry_contract.errors import DataError

from ..functions import load_function

_SHAPE_HINT = "A metric takes (labels, outputs), outputs being arrays by name, and returns one finite number."


@dataclass(frozen=True, slots=True)
class CustomMetric:
    """A loaded function, and the names of the outputs that it is given."""

    name: str
    function: Callable[..., Any]
    lower_is_better: bool
    outputs: tuple[str, ...] = ()
    shown: int = 0
    """Which of the outputs noise and divergence are told of."""

    def with_outputs(self, names: Sequence[str], shown: int) -> CustomMetric:
        """The same for a model with these outputs."""
        return replace(self, outputs=tuple(names), shown=shown)

    def __call__(self, labels: np.ndarray | None, outputs: Mapping[str, np.ndarray]) -> float:
        """Raises `DataError` if the function fails, or returns no finite number."""
        try:
            value = float(self.function(labels, dict(outputs)))
        except Exception as error:  # the boundary to code that is not ours
            raise DataError(
                f"the metric {self.name} failed: {type(error).__name__}: {error}", hint=_SHAPE_HINT
            ) from error
        if not math.isfinite(value):
            raise DataError(f"the metric {self.name} returned {value}", hint=_SHAPE_HINT)
        return value

    def drop(self, reference: float, candidate: float) -> float:
        """What the candidate loses: a difference, or the relative growth of what should be low."""
        if self.lower_is_better:
            return (candidate - reference) / (abs(reference) or 1.0)
        return reference - candidate


def load_metric(text: str) -> CustomMetric:
    """Import ``module:function``. Raises `InputError` if there is none."""
    function = load_function(text)
    return CustomMetric(text, function, bool(getattr(function, "lower_is_better", False)))
