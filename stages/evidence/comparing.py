"""Are two encoders different? Paired differences over the same resampled images, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import stats

from stages.evidence.by_seed import BySeed, common_seeds
from stages.evidence.resampling import LEAST_RESAMPLES, LEVEL, Interval
from stages.metrics import Floats

_ROUNDING = 1e-12  # of sums of a few Dice


@dataclass(frozen=True)
class Comparison:
    """``difference``: the Dice of ``a`` minus that of ``b``, both averaged over ``seeds``, which are those of both.

    ``all_seeds``: whether neither has others. ``interval`` is that of this one difference, ``p`` its two-sided p value,
    ``p_holm`` the same after Holm's correction over all comparisons made together. All three are None with fewer than
    two clusters, where there are too few resamples, and without a common seed: then ``difference`` is NaN.
    """

    a: str
    b: str
    seeds: tuple[int, ...]
    all_seeds: bool
    difference: float
    interval: Interval | None
    p: float | None
    p_holm: float | None

    @property
    def told_apart(self) -> bool:
        """Whether the two differ at the level of all comparisons together."""
        return self.p_holm is not None and self.p_holm < 1 - LEVEL


def compare(
    estimates: tuple[float, float], draws: tuple[Floats, Floats], clusters: int, level: float = LEVEL
) -> tuple[float, Interval | None, float | None]:
    """Return difference, interval and two-sided p value of two encoders scored on the same resamples.

    ``draws``: the scores (R,) of each. Standard error: the standard deviation of the paired differences, times
    √(n / (n − 1)) for n clusters; interval and p value follow from it by Student's t with n − 1 degrees of freedom.
    """
    difference = estimates[0] - estimates[1]
    paired = draws[0] - draws[1]
    paired = paired[~np.isnan(paired)]
    if clusters < 2 or len(paired) < LEAST_RESAMPLES or math.isnan(difference):
        return difference, None, None
    error = float(paired.std(ddof=1)) * math.sqrt(clusters / (clusters - 1))
    reach = float(stats.t.ppf((1 + level) / 2, clusters - 1)) * error
    interval = Interval(difference - reach, difference + reach)
    if error <= _ROUNDING:  # the clusters say the same to the last digit: there is no spread to judge by
        return (difference, interval, 1.0) if abs(difference) <= _ROUNDING else (difference, None, None)
    return difference, interval, float(2 * stats.t.sf(abs(difference) / error, clusters - 1))


def compare_all(scores: Mapping[str, BySeed], clusters: int) -> tuple[Comparison, ...]:
    """Compare every pair of encoders, the better one first, those with the highest Dice before the others."""
    means = {name: one.mean()[0] for name, one in scores.items()}
    order = sorted(means, key=lambda name: (-means[name], name))
    found = []
    for a, b in combinations(order, 2):
        seeds = common_seeds([scores[a], scores[b]])
        whole = set(scores[a].seeds) == set(scores[b].seeds)
        if not seeds:
            found.append(Comparison(a, b, seeds, whole, math.nan, None, None, None))
            continue
        ours, others = scores[a].over(seeds), scores[b].over(seeds)
        if ours[0] < others[0]:  # over all their seeds it is the other way round
            a, b, ours, others = b, a, others, ours
        tested = compare((ours[0], others[0]), (ours[1], others[1]), clusters)
        found.append(Comparison(a, b, seeds, whole, *tested, None))
    corrected = holm([one.p for one in found])
    return tuple(replace(one, p_holm=p) for one, p in zip(found, corrected, strict=True))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return the p values after Holm's step-down correction, in their order; None stays None and counts for nothing."""
    known = sorted((p, index) for index, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    reached = 0.0
    for place, (p, index) in enumerate(known):
        reached = max(reached, min(1.0, (len(known) - place) * p))
        corrected[index] = reached
    return corrected
