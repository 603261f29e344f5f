"""The bootstrap over test images: whole clusters are drawn with replacement, the same ones for every encoder."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stages.metrics import Counts, Floats, dice_of, held, mean_of_present, mean_over_classes
from store.errors import InputError

RESAMPLES = 2000
LEAST_RESAMPLES = 200
LEVEL = 0.95
_ROUNDS = 200  # how often as many resamples are drawn as are wanted, where most lack a class
FEW_CLUSTERS = 6
"""With fewer independent images or patients than this no interval here is to be trusted (docs/statistics.md)."""


class Interval(NamedTuple):
    """A confidence interval, in the unit of what it is of."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Resampling:
    """``weights`` (R, G) float64: how often each of G clusters is in each of R resamples.

    ``member`` (G, N) float64 is 1 where a tile belongs to a cluster, ``names`` are the clusters'. ``seed`` is that of
    the draws.
    """

    weights: Floats
    member: Floats
    names: tuple[str, ...]
    seed: int

    @property
    def clusters(self) -> int:
        """The number of independent clusters, G."""
        return len(self.member)

    @classmethod
    def of(cls, clusters: Sequence[str], truth: NDArray[np.int64], resamples: int = RESAMPLES) -> Resampling:
        """Draw ``resamples`` times as many clusters as there are, with replacement.

        ``clusters``: the patient, or else the image, of each of N tiles. A draw that lacks a class which the test
        set has is made again, as its mean would be over other classes than the test set's; where hardly any draw has
        them all, there are fewer resamples, or none. The draws follow from ``clusters`` and ``truth`` (N, C), the
        pixels of each class in each tile, alone: another encoder changes no other's interval.
        """
        if not clusters or len(clusters) != len(truth):
            raise InputError(
                f"{len(clusters)} clusters were given for {len(truth)} tiles",
                where="clusters",
                remedy="Name the patient or the image of every tile.",
            )
        names = sorted(set(clusters))
        content = json.dumps([list(clusters), truth.tolist()], ensure_ascii=False).encode()
        seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        count = len(names)
        member = _member(clusters, names)
        holds = (member @ truth > 0).astype(np.float64)
        present = holds.any(axis=0)
        generator = np.random.PCG64(np.random.SeedSequence(seed))
        kept: list[Floats] = []
        for _ in range(_ROUNDS):
            weights = _drawn(generator, resamples, count)
            kept.append(weights[(weights @ holds[:, present] > 0).all(axis=1)])
            if sum(map(len, kept)) >= resamples:
                break
        return cls(np.concatenate(kept)[:resamples], member, tuple(names), seed)

    def on(self, clusters: Sequence[str]) -> Resampling:
        """Return the same resamples of other tiles of the same clusters, such as larger ones of the same images.

        Raises ``InputError`` where the clusters are others.
        """
        names = sorted(set(clusters))
        if names != list(self.names):
            raise InputError(
                "the tiles are of other images or patients",
                where="clusters",
                remedy="Resample what both were tested on.",
            )
        return replace(self, member=_member(clusters, names))

    def dice(self, counted: Counts) -> Floats:
        """Return the Dice (R, S, C) of every resample, pooled over its tiles, from counts (S, N, C, 3)."""
        by_cluster = np.tensordot(counted.astype(np.float64), self.member, axes=(1, 1))  # (S, C, 3, G)
        return dice_of(np.tensordot(self.weights, by_cluster, axes=(1, 3)))

    def scores(self, counted: Counts) -> tuple[Floats, Floats]:
        """Return of every resample the mean Dice (R, S) of each seed, and the Dice (R, C) of each class over all seeds.

        Takes counts (S, N, C, 3), all S of the same truth, whose classes each of :meth:`of`'s resamples has. The Dice
        of a class is NaN where a resample has it neither in truth nor in prediction.
        """
        dice = self.dice(counted)
        return mean_over_classes(dice, held(counted)), mean_of_present(dice, axis=1)


def _member(clusters: Sequence[str], names: Sequence[str]) -> Floats:
    return np.array([[float(cluster == name) for cluster in clusters] for name in names])


def _drawn(generator: np.random.PCG64, resamples: int, clusters: int) -> Floats:
    """Return how often each cluster is in each resample, (R, G)."""
    # The raw words of a bit generator are fixed by numpy's policy for all versions; Generator.integers is not.
    words = generator.random_raw(resamples * clusters)
    drawn = ((words >> np.uint64(32)) * np.uint64(clusters)) >> np.uint64(32)
    flat = np.repeat(np.arange(resamples), clusters) * clusters + drawn.astype(np.intp)
    counted = np.bincount(flat, minlength=resamples * clusters)
    return counted.reshape(resamples, clusters).astype(np.float64)


def percentile_interval(draws: Floats, clusters: int, level: float = LEVEL) -> Interval | None:
    """Return the expanded percentile interval of bootstrap ``draws`` (R,); None for fewer than two clusters.

    The plain percentiles of n clusters are too narrow, as if the variance were divided by n instead of n − 1 and
    Student's t were normal: they are taken further out by both (Hesterberg, The American Statistician 69:371, 2015,
    section 4.4). Draws that are NaN are left out; None where fewer than ``LEAST_RESAMPLES`` are left.
    """
    present = draws[~np.isnan(draws)]
    if clusters < 2 or len(present) < LEAST_RESAMPLES:
        return None
    reach = float(stats.t.ppf((1 + level) / 2, clusters - 1)) * math.sqrt(clusters / (clusters - 1))
    tail = float(stats.norm.cdf(-reach))
    low, high = np.quantile(present, [tail, 1 - tail])
    return Interval(float(low), float(high))
