"""Everything that is said of how sure a benchmark is, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.evidence.by_seed import BySeed, common_seeds
from stages.evidence.comparing import Comparison, compare_all
from stages.evidence.ranks import Rank, rank_all
from stages.evidence.resampling import LEAST_RESAMPLES, RESAMPLES, Interval, Resampling, percentile_interval
from stages.metrics import Counts, mean_dice
from store.errors import InputError


@dataclass(frozen=True, eq=False)
class Evidence:
    """``clusters``: independent test images or patients; ``holding`` (C,): how many of them have each class in truth.

    By encoder: ``mean``, the interval of its mean Dice; ``by_class``, those of its classes; ``ranks``, over
    ``ranked_seeds``, the seeds that all encoders have, and empty where there is no such seed, but one cluster or too
    few resamples. Intervals are over all seeds of the encoder, and None where there can be none.
    """

    clusters: int
    holding: tuple[int, ...]
    resamples: int
    seed: int
    mean: Mapping[str, Interval | None]
    by_class: Mapping[str, tuple[Interval | None, ...]]
    comparisons: tuple[Comparison, ...]
    ranked_seeds: tuple[int, ...]
    ranks: Mapping[str, Rank]


def assess(
    counted: Mapping[str, Counts],
    clusters: Sequence[str],
    resamples: int = RESAMPLES,
    *,
    seeds: Mapping[str, Sequence[int]] | None = None,
) -> Evidence:
    """Return intervals, comparisons and ranks of encoders that were tested on the same tiles.

    ``counted``: by encoder, the counts (S, N, C, 3) of its seeds; ``seeds``: the numbers of these, 0 … S − 1 where left
    out; ``clusters``: the patient, or else the image, of each tile. Encoders are compared over the seeds that both
    have, so that no luck of a seed passes for a difference. Raises ``InputError`` where they were not tested on the
    same truth.
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
    scores: dict[str, BySeed] = {}
    by_class: dict[str, tuple[Interval | None, ...]] = {}
    for name, counts in counted.items():
        means, classes = drawn.scores(counts)
        numbers = range(len(counts)) if seeds is None else seeds[name]
        scores[name] = BySeed(tuple(numbers), mean_dice(counts), means)
        by_class[name] = tuple(percentile_interval(values, drawn.clusters) for values in classes.T)
    ranked = common_seeds(scores.values())
    able = bool(ranked) and drawn.clusters > 1 and len(drawn.weights) >= LEAST_RESAMPLES
    return Evidence(
        clusters=drawn.clusters,
        holding=tuple(((drawn.member @ truth) > 0).sum(axis=0).tolist()),
        resamples=len(drawn.weights),
        seed=drawn.seed,
        mean={name: percentile_interval(one.mean()[1], drawn.clusters) for name, one in scores.items()},
        by_class=by_class,
        comparisons=compare_all(scores, drawn.clusters),
        ranked_seeds=ranked,
        ranks=rank_all({name: one.over(ranked) for name, one in scores.items()}) if able else {},
    )
