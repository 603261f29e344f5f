"""The finished runs of one job, by seed, and what they scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.job import Job
from stages.metrics import Counts, mean_dice
from stages.training.record import StoredRun


@dataclass(frozen=True, eq=False)
class Finished:
    """The finished runs of ``job``, of one encoder under one decoder and one protocol, by seed."""

    job: Job
    runs: Mapping[int, StoredRun]

    @staticmethod
    def of(job: Job) -> Finished:
        """Return those of a job without their decoders' weights. Raises as :meth:`Job.finished` does."""
        found = ((seed, job.finished(seed)) for seed in job.seeds)
        return Finished(job, {seed: without_weights(run) for seed, run in found if run is not None})

    @property
    def encoder(self) -> str:
        """The encoder's canonical name."""
        return self.job.encoder

    @property
    def decoder(self) -> str:
        """The decoder's name."""
        return self.job.settings.decoder

    @property
    def factors(self) -> Mapping[str, str]:
        """What was varied, and the value that it has here, as text."""
        return self.job.factors

    @property
    def decoder_parameters(self) -> int:
        """How many weights the decoder has; there has to be a run."""
        return next(iter(self.runs.values())).result.parameters

    @property
    def dice(self) -> NDArray[np.float64]:
        """The mean pooled Dice of the test split, (seeds,); NaN where no class was met."""
        return np.array([mean_dice(run.result.best_counts("test")) for run in self.runs.values()])

    @property
    def test_counts(self) -> Counts:
        """The counts (seeds, tiles, C, 3) of the test split; see :mod:`stages.metrics`. There has to be a run."""
        return np.stack([run.result.best_counts("test") for run in self.runs.values()])


def without_weights(run: StoredRun) -> StoredRun:
    """Return a run without its decoder's weights: those of many runs would fill the memory."""
    return replace(run, result=replace(run.result, weights={}))
