"""The shards of one cache on their way through the workers: planned here, made there, and what became of each.

A lost worker leaves its claim on a shard. On its own machine everybody sees that its process is dead. Elsewhere nobody
can, for as long as leases are waited for; but the cluster knows: a claim names the cluster and the worker that made it,
and if that worker is no longer among those of this very cluster its claim does not count. Should it live all the same,
cut off from its scheduler, the shard is made twice and the first to be finished stands.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.cluster.crew import Crew
from pipeline.cluster.extracting import Made, ShardOrder
from pipeline.cluster.tasks import Task, digest_of
from pipeline.console import Talk
from pipeline.extraction import Waiting
from pipeline.journal import shard_name
from pipeline.parallel import explained
from pipeline.workspace import Workspace
from stages.extract import Done, until_done
from stages.shard_pipeline import Counter
from stages.tiles.tiling import Tile
from store import GridStore, ShardTask, ViewRow
from store.errors import FrostgridError
from store.leases import Holder
from store.sharing.claims import STALE_S
from store.sharing.workshop import plan_there

Position = tuple[str, int]  # part, shard
FailedTask = tuple[str, BaseException]  # what a task is called, and what it raised
HOPELESS = 20  # failures in a row, after which the others are not tried
_NAMED = 20


class ShardsFailed(FrostgridError):
    """Some shards could not be made; all others are finished, unless there was no hope for them."""

    def __init__(self, failures: Sequence[FailedTask], where: str | Path, *, stopped: bool) -> None:
        told = [explained(title, error) for title, error in failures[:_NAMED]]
        names = "".join(f"\n  - {failure.title}: {failure.why}" for failure in told)
        more = f"\n  and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
        rest = "one after the other, so that no more were tried" if stopped else "the others are finished"
        super().__init__(
            f"{len(failures)} task{'s' if len(failures) > 1 else ''} failed, {rest}",
            where=where,
            remedy="The same command tries them again and keeps what is finished.",
        )
        self.args = (f"{self.args[0]}{names}{more}",)
        (first, *others) = [error for _, error in failures]
        if isinstance(first, FrostgridError) and not others:  # ends the command as it would in one process
            self.exit_status = first.exit_status


@dataclass
class Site:
    """What all caches of a study have in common while workers make their shards.

    ``failures``: of any of them, and of encoders. ``check`` is called before a worker gets a shard, and raises what a
    worker lacks.
    """

    work: Workspace
    crew: Crew
    talk: Talk
    check: Callable[[], None]
    failures: list[FailedTask] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waiting = Waiting(self.talk)

    @property
    def root(self) -> str:
        """Where the caches lie, as every worker finds them."""
        work = self.work
        return work.origin.url if work.origin else str(work.cache.absolute())


class Shards:
    """The shards of one cache.

    ``title`` is what people call the cache; ``call_of`` says what a worker is to do for a shard; ``tiles`` has those of
    the views by what the rows call them.
    """

    def __init__(
        self,
        site: Site,
        store: GridStore,
        tiles: Mapping[str, Tile],
        title: str,
        call_of: Callable[[ShardOrder], tuple[Callable[..., Made], tuple[Any, ...]]],
    ) -> None:
        self._site, self._store, self._tiles = site, store, tiles
        self._title, self._call_of = title, call_of
        self._under_way: dict[str, ShardTask] = {}
        self._settled: set[Position] = set()  # failed, or finished at the place elsewhere
        self._gone: defaultdict[Position, set[str]] = defaultdict(set)
        self._seen: dict[Position, tuple[str, float]] = {}
        self._in_a_row = 0
        self._moved = False
        self._counter = Counter(0)

    def done(self, rows: Sequence[ViewRow], update: Callable[[int, int], None]) -> Done:
        """Have the shards made that are missing of ``rows``, and return what was computed and what was there.

        Raises :class:`ShardsFailed` where one after the other fails; else failures are added to the site's.
        """
        tiles = {row.tile for row in rows}
        place = self._site.work.origin
        there: set[tuple[str, int]] = set()
        plan: Callable[[], Iterable[ShardTask]]
        if place is None:
            plan = partial(self._store.plan, rows, can_make=lambda row: row.tile in tiles)
        else:
            planned, there = plan_there(self._store, place, rows, lambda row: row.tile in tiles)
            plan = partial(list, planned)
        wanted = [row for row in rows if row.key not in there]
        self._counter = Counter(len(wanted), update)
        done = until_done(
            wanted, lambda: self._unsettled(plan()), self._run, self._counter, self._site.waiting
        )
        return Done(done.computed, done.kept + len(rows) - len(wanted))

    def _unsettled(self, tasks: Iterable[ShardTask]) -> list[ShardTask]:
        return [task for task in tasks if (task.part, task.shard) not in self._settled]

    def _run(self, tasks: Sequence[ShardTask]) -> bool:
        """Have shards made; return whether that came further than finding that somebody else is at them."""
        self._moved = False
        self._site.check()
        try:
            self._site.crew.perform(
                self._orders(tasks), on_done=self._done, on_failure=self._failed, on_start=self._started
            )
        finally:
            for task in self._under_way.values():
                self._site.work.journal.end("shard", shard_name(self._store, task))
            self._under_way.clear()
        return self._moved

    def _orders(self, tasks: Iterable[ShardTask]) -> Iterator[Task]:
        limit = str(self._site.work.study.cache.max_int8_error)
        for task in tasks:
            gone = tuple(sorted(self._gone[task.part, task.shard]))
            order = ShardOrder(
                self._site.root,
                self._store.path.name,
                task.part,
                task.shard,
                tuple(self._tiles[name] for name in dict.fromkeys(row.tile for row in task.rows)),
                self._site.crew.cluster,
                gone,
            )
            cache = f"{self._store.key[:12]}-{digest_of(self._site.root, limit, *gone)}"
            key = f"extract-{cache}-{task.part}-{task.shard}"
            views = f"{len(task.rows)} views, the first of tile {task.rows[0].name}"
            self._under_way[key] = task
            title = f"{self._title}, shard {task.shard} of {task.part} ({views})"
            yield Task(key, title, *self._call_of(order))

    def _started(self, task: Task) -> None:
        self._site.work.journal.begin("shard", shard_name(self._store, self._under_way[task.key]))

    def _done(self, task: Task, made: Made) -> None:
        shard = self._under_way.pop(task.key)
        position = shard.part, shard.shard
        self._site.work.journal.end("shard", shard_name(self._store, shard))
        self._in_a_row = 0
        self._counter.add(made.views)
        self._moved |= made.views > 0
        if made.holder is not None:
            if self._is_gone(position, made.holder):
                self._gone[position].add(made.holder.token)
                self._moved = True
        elif made.views or made.there:  # of a folder the next plan says it
            if self._site.work.origin is not None:
                self._settled.add(position)
            self._moved = True

    def _failed(self, task: Task, error: BaseException) -> None:
        shard = self._under_way.pop(task.key)
        failure = explained(task.title, error)
        self._settled.add((shard.part, shard.shard))
        self._site.work.journal.fail("shard", shard_name(self._store, shard), failure.why)
        self._site.failures.append((task.title, error))
        self._moved = True
        if failure.trace:
            self._site.talk.say(f"{failure.title}:\n{failure.trace}")
        self._in_a_row += 1
        if self._in_a_row >= HOPELESS:
            raise ShardsFailed(self._site.failures, self._site.root, stopped=True)

    def _is_gone(self, position: Position, holder: Holder) -> bool:
        """Whether a claim does not count: of a worker this cluster has lost, or without a sign of life for long."""
        about, crew = holder.about, self._site.crew
        if about.get("cluster") == crew.cluster and not crew.has(str(about.get("worker"))):
            return True
        if self._site.work.origin is None:
            return False  # a lease in a folder shows its age
        token, since = self._seen.get(position, ("", 0.0))
        if token != holder.token:
            self._seen[position] = holder.token, time.monotonic()
            return False
        return time.monotonic() - since >= STALE_S
