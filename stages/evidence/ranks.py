"""How stable a ranking is: the rank of every encoder in every resample of the test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from stages.evidence.resampling import Interval
from stages.metrics import Floats


@dataclass(frozen=True)
class Rank:
    """``observed`` on the test images themselves, from 1. ``shares``: how often each rank is reached, the first first.

    Equal encoders share the better rank. ``interval`` holds 95 % of the ranks.
    """

    observed: int
    shares: tuple[float, ...]
    interval: Interval

    @property
    def first(self) -> float:
        """How often the encoder is the best."""
        return self.shares[0]

    @property
    def top3(self) -> float:
        """How often it is among the best three."""
        return sum(self.shares[:3])


def rank_all(scores: Mapping[str, tuple[float, Floats]]) -> dict[str, Rank]:
    """Rank all encoders on the test set and in every resample, from their scores there: one, and (R,); NaN is last."""
    names = list(scores)
    observed = stats.rankdata([_lowest(np.array([-scores[name][0]]))[0] for name in names], method="min")
    drawn = _lowest(-np.stack([scores[name][1] for name in names], axis=1))
    ranks = stats.rankdata(drawn, method="min", axis=1).astype(np.intp)
    found = {}
    for index, name in enumerate(names):
        reached = ranks[:, index]
        shares = np.bincount(reached - 1, minlength=len(names)) / len(reached)
        low, high = np.quantile(reached, [0.025, 0.975], method="nearest")
        found[name] = Rank(int(observed[index]), tuple(shares.tolist()), Interval(float(low), float(high)))
    return found


def _lowest(values: Floats) -> Floats:
    return np.where(np.isnan(values), np.inf, values)
