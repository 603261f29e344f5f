"""Are two encoders different? Paired differences over the same resampled images, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from stages.evidence.resampling import LEAST_RESAMPLES, LEVEL, Interval
from stages.metrics import Floats

_ROUNDING = 1e-12  # of sums of a few Dice


@dataclass(frozen=True)
class Comparison:
    """``difference``: the Dice of ``a`` minus that of ``b``, both averaged over their seeds.

    ``interval`` is that of this one difference, ``p`` its two-sided p value, ``p_holm`` the same after Holm's
    correction over all comparisons made together. All three are None with fewer than two clusters,
    or where there are too few resamples.
    """

    a: str
    b: str
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


def compare_all(
    estimates: Mapping[str, float], draws: Mapping[str, Floats], clusters: int
) -> tuple[Comparison, ...]:
    """Compare every pair of encoders, the better one first, those with the highest Dice before the others."""
    order = sorted(estimates, key=lambda name: (-estimates[name], name))
    pairs = list(combinations(order, 2))
    found = [compare((estimates[a], estimates[b]), (draws[a], draws[b]), clusters) for a, b in pairs]
    corrected = holm([p for _, _, p in found])
    return tuple(
        Comparison(a, b, difference, interval, p, p_holm)
        for (a, b), (difference, interval, p), p_holm in zip(pairs, found, corrected, strict=True)
    )


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return the p values after Holm's step-down correction, in their order; None stays None and counts for nothing."""
    known = sorted((p, index) for index, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    reached = 0.0
    for place, (p, index) in enumerate(known):
        reached = max(reached, min(1.0, (len(known) - place) * p))
        corrected[index] = reached
    return corrected
