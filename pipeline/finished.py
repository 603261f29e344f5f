"""The finished runs of one job, by seed, and what they scored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.job import Job
from stages.metrics import Counts, mean_dice
from stages.training.record import StoredRun
from store.errors import VerificationError


@dataclass(frozen=True, eq=False)
class Finished:
    """The finished runs of ``job``, of one encoder under one decoder and one protocol, by seed.

    ``damaged``: what was found instead, of seeds whose run cannot be read.
    """

    job: Job
    runs: Mapping[int, StoredRun]
    damaged: Mapping[int, VerificationError]

    @staticmethod
    def of(job: Job) -> Finished:
        """Return those of a job, without the weights of their decoders, which would fill the memory.

        Raises as :meth:`Job.finished` does, but for damaged runs.
        """
        runs: dict[int, StoredRun] = {}
        damaged: dict[int, VerificationError] = {}
        for seed in job.seeds:
            try:
                run = job.finished(seed)
            except VerificationError as error:
                damaged[seed] = error
                continue
            if run is not None:
                runs[seed] = replace(run, result=replace(run.result, weights={}))
        return Finished(job, runs, damaged)

    def undamaged(self) -> Finished:
        """Return these runs; raises the :class:`VerificationError` of the first that is damaged."""
        for error in self.damaged.values():
            raise error
        return self

    def over(self, seeds: Collection[int]) -> Finished:
        """Return the runs of ``seeds`` alone."""
        return replace(self, runs={seed: run for seed, run in self.runs.items() if seed in seeds})

    @property
    def missing(self) -> tuple[int, ...]:
        """The seeds of the job of which there is no run at all."""
        return tuple(seed for seed in self.job.seeds if seed not in self.runs and seed not in self.damaged)

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
        """The mean pooled Dice of the test split, (seeds,)."""
        return np.array([float(mean_dice(run.result.best_counts("test"))) for run in self.runs.values()])

    @property
    def test_counts(self) -> Counts:
        """The counts (seeds, tiles, C, 3) of the test split; see :mod:`stages.metrics`. There has to be a run."""
        return np.stack([run.result.best_counts("test") for run in self.runs.values()])
