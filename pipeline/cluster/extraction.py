"""Stage one on a cluster: this process plans, one task a shard goes to the workers, and what fails is told at the end.

A task carries the address of a cache, the number of a shard and where its tiles lie; the worker opens the cache, reads
the images and writes the shard. With a cache at a URL it makes the shard in a folder of its own and sends it.

A lost worker leaves its claim on a shard. On its own machine everybody sees that its process is dead. Elsewhere nobody
can, for as long as leases are waited for; but the cluster knows: a claim names the cluster and the worker that made it,
and if that worker is no longer among those of this very cluster its claim does not count. Should it live all the same,
cut off from its scheduler, the shard is made twice and the first to be finished stands.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import staging
from pipeline.cluster import extracting
from pipeline.cluster.crew import Crew
from pipeline.cluster.extracting import (
    EncoderOrder,
    LoadedEncoder,
    Made,
    ShardOrder,
    digest_of,
    still_gone,
    tiles_of_task,
)
from pipeline.cluster.tasks import Task
from pipeline.console import Talk, bytes_text
from pipeline.extraction import Waiting, begun, manner, size_text
from pipeline.journal import shard_name
from pipeline.runs import Failure
from pipeline.study import CacheSection, Study, TrainSection
from pipeline.workspace import VIEWS, Workspace
from stages.encoders import canonical_name
from stages.extract import Done, until_done
from stages.shard_pipeline import Counter
from stages.tiles.plan import mask_rows, token_rows
from stages.tiles.tiling import Tile
from store import GridReader, GridStore, ShardTask, ViewRow
from store.errors import FrostgridError, StorageError
from store.leases import Holder
from store.sharing import push
from store.sharing.claims import STALE_S
from store.sharing.workshop import plan_there

Position = tuple[str, int]  # part, shard
HOPELESS = 20  # failures in a row, after which the others are not tried
_NAMED = 20
_LOOKED_AT = 16  # images


class ShardsFailed(FrostgridError):
    """Some shards could not be made; all others are finished, unless there was no hope for them."""

    def __init__(self, failures: Sequence[Failure], where: str | Path, *, stopped: bool) -> None:
        self.failures = tuple(failures)
        names = "".join(f"\n  - {failure.title}: {failure.why}" for failure in failures[:_NAMED])
        more = f"\n  and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
        rest = "one after the other, so that no more were tried" if stopped else "the others are finished"
        super().__init__(
            f"{len(failures)} task{'s' if len(failures) > 1 else ''} failed, {rest}",
            where=where,
            remedy="The same command tries them again and keeps what is finished.",
        )
        self.args = (f"{self.args[0]}{names}{more}",)


class OnCluster:
    """Stage one by the workers of ``crew``; see :class:`pipeline.extraction.Extraction`.

    ``references``: the encoders, by canonical name; ``weights``: of those that are to be extracted, the files that the
    user or the study names, None where each worker gets them by itself. Raises :class:`store.errors.InputErrors` where
    a worker does not see the data, the caches or one of these files, and what keeps a worker from getting them.
    """

    def __init__(
        self,
        work: Workspace,
        crew: Crew,
        talk: Talk,
        references: Mapping[str, str],
        weights: Mapping[str, Path | None],
        batch: int | None,
        compile: bool,
    ) -> None:
        self._work, self._crew, self._talk = work, crew, talk
        self._batch, self._compile = batch, compile
        self._waiting = Waiting(talk)
        self._failures: list[Failure] = []
        self._unloaded: list[tuple[str, FrostgridError]] = []
        self._study = _for_workers(work.study)
        self._weights = {name: path.absolute() for name, path in weights.items() if path is not None}
        files = [*self._weights.values(), *(Path(one) for one in map(_file_of, references.values()) if one)]
        files += _some_of_the_data(work)
        crew.require(
            folders=[] if work.origin else [work.cache],
            files=files,
            urls=[work.origin.url] if work.origin else [],
        )
        for name, path in weights.items():
            if path is None:
                order = self._order(references[name], None)
                crew.ask(
                    Task(f"check-{digest_of(repr(order))}", f"weights of {name}", extracting.check, (order,))
                )

    def masks(self) -> GridStore:
        """See :class:`Extraction`. Raises :class:`ShardsFailed`: without all views nothing can be encoded."""
        work, talk = self._work, self._talk
        staging.refuse_unlicensed_place(work, VIEWS, {})
        staging.stage_masks(work, talk)
        masks = work.masks_store(create=True)
        tiles = {view.tile.mask_key: view.tile for view in work.views}
        with talk.bar("Drawing views", "views") as update:
            shards = _Shards(
                self, masks, tiles, "views", lambda order: (extracting.draw, (self._study, order))
            )
            done = shards.done(mask_rows(work.views), update)
        talk.say(f"views: {done.computed} drawn, {done.kept} kept ({self._address(masks)})")
        self.finish()
        self._seal(masks)
        staging.stage_masks(
            work, talk
        )  # the hashes in it are what the views that are encoded are compared with
        return masks

    def tokens(self, reference: str, weights: Path | None, masks: GridReader) -> None:
        """See :class:`Extraction`. An encoder that cannot be loaded and shards that fail are told by :meth:`finish`."""
        work, talk = self._work, self._talk
        name = canonical_name(reference)
        given = self._weights.get(name) or (None if weights is None else weights.absolute())
        order = self._order(reference, given)
        task = Task(f"load-{digest_of(repr(order))}", f"loading {name}", extracting.load, (order,))
        try:
            loaded: LoadedEncoder = self._crew.ask(task)
        except StorageError:
            raise
        except FrostgridError as error:
            self._unloaded.append((task.title, error))
            return
        store = begun(work, loaded, talk)
        tiles = {view.tile.key: view.tile for view in work.views}
        limit = work.study.cache.max_int8_error
        with talk.bar(f"Extracting {name}", "views", size_text(store, len(work.views))) as update:
            shards = _Shards(
                self, store, tiles, name, lambda shard: (extracting.encode, (order, shard, limit))
            )
            done = shards.done(token_rows(work.views, masks), update)
        stored = "" if work.origin else f", {bytes_text(store.status().bytes)}"
        talk.say(
            f"{name}: {done.computed} views encoded, {done.kept} kept{stored} ({self._address(store)}); "
            f"batches of {loaded.batch}, {manner(loaded)}"
        )
        self._seal(store)

    def finish(self) -> None:
        """See :class:`Extraction`: raises why an encoder could not be loaded, or :class:`ShardsFailed`."""
        if len(self._unloaded) == 1 and not self._failures:
            raise self._unloaded[0][1]
        failures = [*(Failure(title, str(error)) for title, error in self._unloaded), *self._failures]
        if failures:
            raise ShardsFailed(failures, self._root, stopped=False)

    def _order(self, reference: str, weights: Path | None) -> EncoderOrder:
        return EncoderOrder(
            self._study,
            _absolute(reference),
            None if weights is None else str(weights),
            self._work.dtype,
            self._batch,
            self._compile,
        )

    @property
    def _root(self) -> str:
        """Where the caches lie, as every worker finds them."""
        work = self._work
        return work.origin.url if work.origin else str(work.cache.absolute())

    def _address(self, store: GridStore) -> str:
        return f"{self._root}/{store.path.name}"

    def _seal(self, store: GridStore) -> None:
        """Seal the parts that are complete at the place elsewhere, and send what was finished here before."""
        if self._work.origin is not None:
            copied = push(store, self._work.origin, views=self._work.keys_of(store.slug))
            if copied.shards:
                self._talk.say(
                    f"{store.path.name}: {copied.shards} shard(s), {bytes_text(copied.bytes)} that were here already "
                    f"sent to {self._work.origin.url}"
                )


class _Shards:
    """The shards of one cache on their way through the workers.

    ``title`` is what people call the cache; ``call_of`` says what a worker is to do for a shard.
    """

    def __init__(
        self,
        extraction: OnCluster,
        store: GridStore,
        tiles: Mapping[str, Tile],
        title: str,
        call_of: Callable[[ShardOrder], tuple[Callable[..., Made], tuple[Any, ...]]],
    ) -> None:
        self._work, self._crew, self._talk = extraction._work, extraction._crew, extraction._talk
        self._waiting, self._failures, self._root = (
            extraction._waiting,
            extraction._failures,
            extraction._root,
        )
        self._store, self._tiles, self._title, self._call_of = store, tiles, title, call_of
        self._under_way: dict[str, ShardTask] = {}
        self._settled: set[Position] = set()  # failed, or finished at the place elsewhere
        self._gone: defaultdict[Position, set[str]] = defaultdict(set)
        self._seen: dict[Position, tuple[str, float]] = {}
        self._in_a_row = 0
        self._moved = False
        self._counter = Counter(0)

    def done(self, rows: Sequence[ViewRow], update: Callable[[int, int], None]) -> Done:
        """Have the shards made that are missing of ``rows``, and return what was computed and what was there."""
        can_make = self._can_make(rows)
        there: set[tuple[str, int]] = set()
        if self._work.origin is None:
            plan = partial(self._store.plan, rows, can_make=can_make)
        else:
            planned, there = plan_there(self._store, self._work.origin, rows, can_make)
            plan = partial(list, planned)
        wanted = [row for row in rows if row.key not in there]
        self._counter = Counter(len(wanted), update)
        done = until_done(wanted, lambda: self._left(plan()), self._run, self._counter, self._waiting)
        return Done(done.computed, done.kept + len(rows) - len(wanted))

    def _can_make(self, rows: Sequence[ViewRow]) -> Callable[[ViewRow], bool]:
        tiles = {row.tile for row in rows}
        return lambda row: row.tile in tiles

    def _left(self, tasks: Iterable[ShardTask]) -> list[ShardTask]:
        return [task for task in tasks if (task.part, task.shard) not in self._settled]

    def _run(self, tasks: Sequence[ShardTask]) -> bool:
        """Have shards made; return whether that came further than finding that somebody else is at them."""
        self._moved = False
        try:
            self._crew.perform(
                self._orders(tasks), on_done=self._done, on_failure=self._failed, on_start=self._started
            )
        finally:
            for task in self._under_way.values():
                self._work.journal.end("shard", shard_name(self._store, task))
            self._under_way.clear()
        return self._moved

    def _orders(self, tasks: Sequence[ShardTask]) -> Iterator[Task]:
        for task in tasks:
            gone = still_gone(self._gone[task.part, task.shard])
            order = ShardOrder(
                self._root,
                self._store.path.name,
                task.part,
                task.shard,
                tiles_of_task(task, self._tiles),
                self._crew.cluster,
                gone,
            )
            call, args = self._call_of(order)
            limit = str(self._work.study.cache.max_int8_error)
            cache = f"{self._store.key[:12]}-{digest_of(self._root, limit, *gone)}"
            key = f"extract-{cache}-{task.part}-{task.shard}"
            views = f"{len(task.rows)} views, the first of tile {task.rows[0].name}"
            self._under_way[key] = task
            yield Task(key, f"{self._title}, shard {task.shard} of {task.part} ({views})", call, args)

    def _started(self, task: Task) -> None:
        self._work.journal.begin("shard", shard_name(self._store, self._under_way[task.key]))

    def _done(self, task: Task, made: Made) -> None:
        shard = self._under_way.pop(task.key)
        place = shard.part, shard.shard
        self._work.journal.end("shard", shard_name(self._store, shard))
        self._in_a_row = 0
        self._counter.add(made.views)
        self._moved |= made.views > 0
        if made.holder is not None:
            if self._is_gone(place, made.holder):
                self._gone[place].add(made.holder.token)
                self._moved = True
        elif made.views or made.there:  # of a folder the next plan says it
            if self._work.origin is not None:
                self._settled.add(place)
            self._moved = True

    def _failed(self, task: Task, failure: Failure) -> None:
        shard = self._under_way.pop(task.key)
        self._settled.add((shard.part, shard.shard))
        self._work.journal.fail("shard", shard_name(self._store, shard), failure.why)
        self._failures.append(failure)
        self._moved = True
        if failure.trace:
            self._talk.say(f"{failure.title}:\n{failure.trace}")
        self._in_a_row += 1
        if self._in_a_row >= HOPELESS:
            raise ShardsFailed(self._failures, self._root, stopped=True)

    def _is_gone(self, place: Position, holder: Holder) -> bool:
        """Whether a claim does not count: of a worker this cluster has lost, or without a sign of life for long."""
        about = holder.about
        if about.get("cluster") == self._crew.cluster and not self._crew.has(str(about.get("worker"))):
            return True
        if self._work.origin is None:
            return False  # a lease in a folder shows its age
        token, since = self._seen.get(place, ("", 0.0))
        if token != holder.token:
            self._seen[place] = holder.token, time.monotonic()
            return False
        return time.monotonic() - since >= STALE_S


def _for_workers(study: Study) -> str:
    """Return what workers need of a study as JSON, alike for all that differ in nothing else; paths absolute."""
    data, encoders = study.data, study.encoders
    changes: dict[str, Any] = {}
    if data.root is not None:
        changes["root"] = str(Path(data.root).absolute())
    if isinstance(data.split, str):
        changes["split"] = str(Path(data.split).absolute())
    return study.model_copy(
        update={
            "name": "",
            "data": data.model_copy(update=changes),
            "encoders": encoders.model_copy(
                update={
                    "names": ["stain"],  # each task names its own
                    "weights": {},
                    "revisions": {_absolute(name): one for name, one in encoders.revisions.items()},
                    "input_px": {_absolute(name): one for name, one in encoders.input_px.items()},
                }
            ),
            "cache": CacheSection(),
            "train": TrainSection(),
        }
    ).model_dump_json()


def _some_of_the_data(work: Workspace) -> list[Path]:
    """Return a few images and masks from all over the data set, by which one knows it on another machine."""
    records = [record for record in work.records.values() if record.path is not None]
    step = -(-len(records) // _LOOKED_AT) or 1
    paths = [path for record in records[::step] for path in (record.path, record.mask_path)]
    return [path for path in paths if path is not None]


def _absolute(reference: str) -> str:
    """Return a reference to an encoder as any folder understands it: that to a TOML by its absolute path."""
    file = _file_of(reference)
    return reference if file is None else reference.replace(file, str(Path(file).absolute()), 1)


def _file_of(reference: str) -> str | None:
    """Return the path of the TOML that a reference names, with or without a block after it."""
    name, _, layer = reference.rpartition("@")
    if not name or layer.endswith(".toml"):
        name = reference
    return name if name.endswith(".toml") else None
