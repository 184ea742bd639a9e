"""How much of fp32 a variant keeps, row by row: every metric becomes a paired loss. Pure.

A *head* is one output with one metric. With labels there is one head; without them every output is one, and
the worst decides: nobody has said which output does not matter. A row is the unit that is independent of the
others; it may be a whole sequence, whose steps are scored together and resampled together.
"""

from __future__ import annotations

from .bounds import bootstrap_bound, exact_bound
from .combine import HeadResult, combine
from .heads import METRICS, Form, Head, Metric, choose_heads
from .scores import RowScore, classes_of, score_row

__all__ = [
    "METRICS",
    "Form",
    "Head",
    "HeadResult",
    "Metric",
    "RowScore",
    "bootstrap_bound",
    "choose_heads",
    "classes_of",
    "combine",
    "exact_bound",
    "score_row",
]
