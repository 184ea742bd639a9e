"""What it costs that fp32 and a candidate decide a few rows differently (docs/adr/0010).

With n = 160 one row is 0.6 points, and one row that fp32 has right and the candidate wrong bounds the loss at
3 points: by counting alone no variant passes a limit of one point. But what was lost is seldom one sure
answer: most flips are near ties, which would have been won as often as lost. So where few rows disagree, the
label of a flipped row, one toss of a coin, is replaced by the odds of that coin: fp32's own probabilities of
the two classes. That is the conditional mean of the loss (Rao and Blackwell), with a small part of its
variance. It is believed no further than the labels allow:

- where the labels of *all* rows refute that fp32 is no surer than it is right (label smoothing, forests), its
  odds are sharpened by a temperature (Guo et al. 2017) until they do not; they are never softened;
- where the labels of the flipped rows lie outside of what those odds allow (5%), the labels alone count;
- from `MANY` disagreements on (McNemar 1947: the normal approximation holds from 25) the labels alone count.

Where no row disagrees nothing of this has anything to say: see `skerry_packager.metrics.exact_bound`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from .scores import Decision

MANY: Final = 25
_CONTRADICTED: Final = 0.05
_TEMPERATURES: Final = np.geomspace(0.05, 1.0, 40)
_CHI_SQUARE: Final = 2.706
"""5% of one side: what twice the log-likelihood lies below its best, at a temperature that is refuted."""


def expected_losses(decisions: Sequence[Decision]) -> np.ndarray | None:
    """Loss of every row by fp32's odds, or None where the labels alone must count."""
    flips = [decision for decision in decisions if decision.picked != decision.chosen]
    differ = sum(decision.picked_right != decision.chosen_right for decision in decisions)
    if differ >= MANY:
        return None
    temperature = _temperature(decisions)
    odds = [_odds(decision, temperature) for decision in flips]
    lost = sum(int(decision.chosen_right) - int(decision.picked_right) for decision in flips)
    if _chance(odds, lost) < _CONTRADICTED:
        return None
    return np.array([right - wrong for right, wrong in (_odds(item, temperature) for item in decisions)])


def _odds(decision: Decision, temperature: float) -> tuple[float, float]:
    """Probability that fp32's class is the right one, and that the candidate's is."""
    if decision.picked == decision.chosen:
        return 0.0, 0.0  # the same class: nothing lost, nothing won
    both = min(float(np.exp(decision.chosen) + np.exp(decision.picked)), 1.0)
    share = _logistic((decision.chosen - decision.picked) / temperature)
    return both * share, both * (1 - share)


def _temperature(decisions: Sequence[Decision]) -> float:
    """The highest one up to 1 that the labels do not refute, by the rows whose label is in fp32's top two."""
    decided = [item for item in decisions if item.chosen_right or item.runner_up_right]
    if not decided:
        return 1.0
    margins = np.array([item.chosen - item.runner_up for item in decided])
    signs = np.where([item.chosen_right for item in decided], 1.0, -1.0)
    likelihood = -np.logaddexp(0, -signs * margins / _TEMPERATURES[:, None]).sum(axis=1)
    believable = 2 * (likelihood.max() - likelihood) <= _CHI_SQUARE
    return float(_TEMPERATURES[believable].max())


def _chance(odds: Sequence[tuple[float, float]], lost: int) -> float:
    """Probability of losing that many rows or more, each row being lost, won or neither."""
    chances = np.ones(1)
    for right, wrong in odds:
        chances = np.convolve(chances, [wrong, max(0.0, 1 - right - wrong), right])
    return float(chances[max(0, lost + len(odds)) :].sum())


def _logistic(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))
