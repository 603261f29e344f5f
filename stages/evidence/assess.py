"""Everything that is said of how sure a benchmark is, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.evidence.comparing import Comparison, compare_all
from stages.evidence.ranks import Rank, rank_all
from stages.evidence.resampling import LEAST_RESAMPLES, RESAMPLES, Interval, Resampling, percentile_interval
from stages.metrics import Counts, mean_of_present, mean_over_classes, pooled_dice
from store.errors import InputError


@dataclass(frozen=True, eq=False)
class Evidence:
    """``clusters``: independent test images or patients; ``holding`` (C,): how many of them have each class in truth.

    By encoder: ``mean``, the interval of its mean Dice; ``by_class``, those of its classes; ``ranks``, empty where
    there is but one cluster or too few resamples. Intervals are None where there can be none.
    """

    clusters: int
    holding: tuple[int, ...]
    resamples: int
    seed: int
    mean: Mapping[str, Interval | None]
    by_class: Mapping[str, tuple[Interval | None, ...]]
    comparisons: tuple[Comparison, ...]
    ranks: Mapping[str, Rank]


def assess(counted: Mapping[str, Counts], clusters: Sequence[str], resamples: int = RESAMPLES) -> Evidence:
    """Return intervals, comparisons and ranks of encoders that were tested on the same tiles.

    ``counted``: by encoder, the counts (S, N, C, 3) of its seeds, which may differ in number; ``clusters``: the
    patient, or else the image, of each tile. Raises ``InputError`` where they were not tested on the same truth.
    """
    truths = {name: counts[0, :, :, 2] for name, counts in counted.items()}
    truth = next(iter(truths.values()))
    for name, other in truths.items():
        if not np.array_equal(other, truth):
            raise InputError(
                f"{name} was not tested on the same pixels as {next(iter(truths))}",
                where="test",
                remedy="Train both on the study as it is now.",
            )
    drawn = Resampling.of(clusters, truth, resamples)
    scores = {name: drawn.scores(counts) for name, counts in counted.items()}
    means = {name: mean for name, (mean, _) in scores.items()}
    estimates = {
        name: float(mean_of_present(mean_over_classes(pooled_dice(counts)), axis=0))
        for name, counts in counted.items()
    }
    return Evidence(
        clusters=drawn.clusters,
        holding=tuple(((drawn.member @ truth) > 0).sum(axis=0).tolist()),
        resamples=len(drawn.weights),
        seed=drawn.seed,
        mean={name: percentile_interval(mean, drawn.clusters) for name, mean in means.items()},
        by_class={
            name: tuple(percentile_interval(values, drawn.clusters) for values in classes.T)
            for name, (_, classes) in scores.items()
        },
        comparisons=compare_all(estimates, means, drawn.clusters),
        ranks=rank_all(estimates, means)
        if drawn.clusters > 1 and len(drawn.weights) >= LEAST_RESAMPLES
        else {},
    )
