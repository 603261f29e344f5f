"""The mean Dice of an encoder seed by seed, so that encoders are compared over seeds that both have."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from stages.metrics import Floats, mean_of_present


@dataclass(frozen=True, eq=False)
class BySeed:
    """``seeds``: their numbers; mean Dice of each, ``observed`` (S,) on the test set, ``drawn`` (R, S) in resamples."""

    seeds: tuple[int, ...]
    observed: Floats
    drawn: Floats

    def over(self, seeds: Collection[int]) -> tuple[float, Floats]:
        """Return both as means over those of ``seeds`` it has: a number, and (R,); NaN where nothing is known."""
        kept = [at for at, seed in enumerate(self.seeds) if seed in seeds]
        return float(mean_of_present(self.observed[kept], axis=0)), mean_of_present(
            self.drawn[:, kept], axis=1
        )

    def mean(self) -> tuple[float, Floats]:
        """Return both as means over all seeds."""
        return self.over(self.seeds)


def common_seeds(scores: Iterable[BySeed]) -> tuple[int, ...]:
    """Return the seeds that all of ``scores``, one or more, have."""
    return tuple(sorted(set.intersection(*(set(one.seeds) for one in scores))))
