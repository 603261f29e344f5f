"""What becomes of the runs of stage two while they are trained: progress, failures, and the journal of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.console import Talk, Update
from pipeline.job import Job
from pipeline.journal import Journal
from pipeline.runs import Failure, RunsFailed
from stages.training.result import EpochReport
from store.errors import FrostgridError


@dataclass
class Outcome:
    """What became of the runs that were asked for.

    ``runs``: how many there are. ``trained`` and ``failed``: for each job, the seeds of which that holds now; all
    others were there already. ``failures`` says why; ``unread`` what kept whole caches from being read.
    """

    runs: int
    trained: list[list[int]]
    failed: list[list[int]]
    failures: list[Failure] = field(default_factory=list)
    unread: list[tuple[str, FrostgridError]] = field(default_factory=list)

    @classmethod
    def of(cls, jobs: Sequence[Job]) -> Outcome:
        """Return that of ``jobs`` of which no run was trained yet."""
        return cls(sum(len(job.seeds) for job in jobs), [[] for _ in jobs], [[] for _ in jobs])

    def raise_failures(self, folder: Path) -> None:
        """Raise what went wrong, if anything did: the fault of the one cache that could not be read, else all of it.

        ``folder`` is where the results lie. Raises :class:`RunsFailed`, or the fault itself.
        """
        if len(self.unread) == 1 and not self.failures:
            raise self.unread[0][1]
        failures = [*self.failures, *(Failure(title, str(error)) for title, error in self.unread)]
        if failures:
            raise RunsFailed(failures, sum(map(len, self.failed)), self.runs, folder)


Run = tuple[int, int]
"""A run that is to be trained: the position of its job among all, and its seed."""


class Following:
    """Follows ``runs`` while they are trained, and puts down in ``outcome`` what becomes of them.

    ``update`` is told how far all of them are together, in epochs, of which one of a costly run counts for more than
    one of a cheap one, so that the time left is right for a sweep over decoders and training sets.
    """

    def __init__(self, jobs: Sequence[Job], runs: Sequence[Run], update: Update, outcome: Outcome) -> None:
        self._jobs, self._update, self._outcome = jobs, update, outcome
        self._total = sum(jobs[position].settings.epochs for position, _ in runs)
        work = sum(jobs[position].cost * jobs[position].settings.epochs for position, _ in runs)
        self._weights = {run: jobs[run[0]].cost * self._total / work for run in runs}
        self._done = dict.fromkeys(runs, 0)
        self._sum = 0.0
        self._update(0, self._total)

    @classmethod
    @contextmanager
    def shown(
        cls, jobs: Sequence[Job], runs: Sequence[Run], talk: Talk, outcome: Outcome
    ) -> Iterator[Following]:
        """Follow ``runs`` with a bar, and tell of failures that do not explain themselves at the end."""
        with talk.bar(f"Training {len(runs)} run{'s' if len(runs) > 1 else ''}", "epochs") as update:
            yield cls(jobs, runs, update, outcome)
        for failure in outcome.failures:
            if failure.trace:
                talk.say(f"{failure.title}:\n{failure.trace}")

    def begun(self, run: Run) -> None:
        """Note that a run is being trained."""
        self._journal(run).begin("run", self._name(run))

    def epoch(self, run: Run, epoch: int) -> None:
        """Note that a run has finished ``epoch``."""
        self._sum += self._weights[run] * (epoch - self._done[run])
        self._done[run] = epoch
        self._update(round(self._sum), self._total)

    def reporter(self, run: Run) -> Callable[[EpochReport], None]:
        """Return whom a run tells of its epochs."""
        return lambda report: self.epoch(run, report.epoch)

    def trained(self, run: Run) -> None:
        """Note that a run is finished."""
        self._journal(run).end("run", self._name(run))
        self._outcome.trained[run[0]].append(run[1])
        self._end(run)

    def failed(self, run: Run, failure: Failure) -> None:
        """Note that a run could not be finished."""
        self._outcome.failures.append(failure)
        self._fail(run, failure.why)

    def unread(self, runs: Sequence[Run], title: str, error: FrostgridError) -> None:
        """Note that a cache, called ``title``, cannot be read, so that none of these ``runs`` can be trained."""
        if title not in dict(self._outcome.unread):
            self._outcome.unread.append((title, error))
        for run in runs:
            self._fail(run, str(error))

    def _fail(self, run: Run, why: str) -> None:
        self._journal(run).fail("run", self._name(run), why)
        self._outcome.failed[run[0]].append(run[1])
        self._end(run)

    def _end(self, run: Run) -> None:
        self.epoch(run, self._jobs[run[0]].settings.epochs)

    def _journal(self, run: Run) -> Journal:
        return self._jobs[run[0]].work.journal

    def _name(self, run: Run) -> str:
        job = self._jobs[run[0]]
        return job.run_folder(run[1]).relative_to(job.work.results).as_posix()
