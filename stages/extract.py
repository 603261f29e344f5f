"""Stage one: every view through the frozen encoder once, into the feature cache, with all steps overlapped."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stages.batching import Batches
from stages.tiles.plan import PlannedView, ViewSource, mask_rows, rendered_masks, token_rows
from stages.tiles.tiling import Tile
from stages.tiles.views import view_sha256
from store import GridReader, GridStore, ShardTask, ViewRow
from store.errors import IdentityMismatch
from store.int8 import MAX_ERROR

Progress = Callable[[int, int], None]  # views done, views to do
Watch = Callable[[ShardTask], AbstractContextManager[object]]  # entered while a shard is being made
WAIT_SECONDS = 2.0  # between looks at shards that another process is writing


class Shelf(Protocol):
    """Where finished shards go: a :class:`store.GridStore`, or what does for one that lies elsewhere."""

    def lease(self, task: ShardTask) -> AbstractContextManager[bool]:
        """Claim a shard for the block; False where another has it or it is finished."""

    def write(
        self,
        task: ShardTask,
        grids: Iterable[tuple[NDArray[Any], Mapping[str, Any] | None]],
        *,
        max_error: float = MAX_ERROR,
    ) -> None:
        """Store the grids of a shard in the order of its rows."""


@dataclass(frozen=True)
class Done:
    """What a call computed and what it found there already, in views."""

    computed: int
    kept: int


def write_views(
    views: Sequence[PlannedView],
    source: ViewSource,
    store: GridStore,
    *,
    threads: int,
    on_progress: Progress | None = None,
    on_wait: Callable[[int], None] | None = None,
    watch: Watch = nullcontext,
) -> Done:
    """Render every view that the views store lacks; keep its mask, its draw and the hash of its pixels.

    ``threads`` shards are rendered at a time; ``on_wait`` hears of the number of shards that only another process is
    writing, while they are waited for; ``watch`` is entered for as long as a shard is worked on. Raises what reading
    the images raises; everything committed stays.
    """
    tiles = {view.tile.mask_key: view.tile for view in views}
    counter = Counter(len(views), on_progress)

    def one(task: ShardTask) -> bool:
        with store.lease(task) as mine:
            if not mine:
                return False
            with watch(task):
                planned = [PlannedView(tiles[row.tile], row.view) for row in task.rows]
                store.write(task, counter.through(rendered_masks(planned, source)))
            return True

    def run(tasks: Sequence[ShardTask]) -> bool:
        with ThreadPoolExecutor(threads) as pool:
            return any(list(pool.map(one, tasks)))

    rows = mask_rows(views)
    return until_done(rows, _planning(store, rows), run, counter, on_wait)


def write_views_shard(
    task: ShardTask, tiles: Mapping[str, Tile], source: ViewSource, shelf: Shelf, *, threads: int
) -> bool:
    """Make one shard of a views store, its views rendered by ``threads``; ``tiles`` has theirs by ``mask_key``.

    Returns False where somebody else has it or it is finished. Raises what reading the images raises.
    """
    with shelf.lease(task) as mine:
        if mine:
            planned = [PlannedView(tiles[row.tile], row.view) for row in task.rows]
            shelf.write(task, _rendered_ahead(planned, source, threads))
        return mine


def _rendered_ahead(
    planned: Sequence[PlannedView], source: ViewSource, threads: int
) -> Iterator[tuple[NDArray[np.uint8], dict[str, Any]]]:
    waiting: deque[Future[tuple[NDArray[np.uint8], dict[str, Any]]]] = deque()
    with ThreadPoolExecutor(threads, "render") as pool:
        for view in planned:
            waiting.append(pool.submit(lambda one: next(rendered_masks([one], source)), view))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def extract(
    views: Sequence[PlannedView],
    source: ViewSource,
    masks: GridReader,
    batches: Batches,
    store: GridStore,
    *,
    threads: int,
    max_int8_error: float = MAX_ERROR,
    on_progress: Progress | None = None,
    on_wait: Callable[[int], None] | None = None,
    watch: Watch = nullcontext,
) -> Done:
    """Encode every view that the feature cache lacks.

    ``masks`` is the reader of the views store, whose pixel hashes every view is checked against before it is
    encoded; ``batches`` encode them, in smaller batches from the moment on where the device has no memory for larger
    ones; ``threads`` read and render; ``max_int8_error`` is what an int8 cache may lose of a view (``store.int8``);
    ``on_wait`` and ``watch`` as for :func:`write_views`. Rendering, encoding and writing run at the same time over
    bounded queues: memory does not grow with the data set. Raises :class:`IdentityMismatch` naming tile and view when a
    view's pixels are not those of the views store; every committed shard stays.
    """
    tiles = {view.tile.key: view.tile for view in views}
    counter = Counter(len(views), on_progress)

    def run(tasks: Sequence[ShardTask]) -> bool:
        return _Pipeline(source, batches, store, tiles, max_int8_error, watch).run(tasks, threads, counter)

    rows = token_rows(views, masks)
    return until_done(rows, _planning(store, rows), run, counter, on_wait)


def extract_shard(
    task: ShardTask,
    tiles: Mapping[str, Tile],
    source: ViewSource,
    batches: Batches,
    shelf: Shelf,
    *,
    threads: int,
    max_int8_error: float = MAX_ERROR,
) -> bool:
    """Make one shard of a feature cache, in the batches and with the checks of :func:`extract`.

    ``tiles`` has those of its views by ``key``. Returns False where somebody else has it or it is finished. Raises as
    :func:`extract`.
    """
    counter = Counter(len(task.rows), None)
    return _Pipeline(source, batches, shelf, tiles, max_int8_error).run([task], threads, counter)


class Counter:
    """Counts views as they pass, from any thread, on their way to ``total``; tells ``on_progress``."""

    def __init__(self, total: int, on_progress: Progress | None = None) -> None:
        self.total, self.done, self.computed = total, 0, 0
        self._on_progress = on_progress
        self._lock = threading.Lock()

    def start(self, kept: int) -> None:
        """Begin again with the views that are there already."""
        self.done = kept
        self._report()

    def add(self, count: int) -> None:
        """Count views that were computed."""
        with self._lock:
            self.done += count
            self.computed += count
            self._report()

    def through(self, items: Iterator[Any]) -> Iterator[Any]:
        """Yield the views, counting them."""
        for item in items:
            yield item
            self.add(1)

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(min(self.done, self.total), self.total)


def _planning(store: GridStore, rows: Sequence[ViewRow]) -> Callable[[], list[ShardTask]]:
    """Return what plans the shards that are still missing of ``rows``, of no other tiles than theirs."""
    tiles = {row.tile for row in rows}
    return lambda: store.plan(rows, can_make=lambda row: row.tile in tiles)


def until_done(
    rows: Sequence[ViewRow],
    plan: Callable[[], Sequence[ShardTask]],
    run: Callable[[Sequence[ShardTask]], bool],
    counter: Counter,
    on_wait: Callable[[int], None] | None = None,
) -> Done:
    """Run the shards of ``rows`` that ``plan`` says are missing until there are none.

    ``run`` returns whether it came further; where it did not, another process holds what is left: that is waited for,
    and taken over if that process dies. ``on_wait`` hears of the number of shards.
    """
    wanted = {(row.tile, row.view) for row in rows}
    kept: int | None = None
    while tasks := plan():
        present = len(rows) - sum((row.tile, row.view) in wanted for task in tasks for row in task.rows)
        kept = present if kept is None else kept
        counter.start(present)
        if not run(tasks):
            if on_wait is not None:
                on_wait(len(tasks))
            time.sleep(WAIT_SECONDS)
    return Done(counter.computed, len(rows) if kept is None else kept)


class _Shard:
    """One shard on its way to the store: encoded batches go in, a writer thread takes them out."""

    def __init__(
        self,
        store: Shelf,
        task: ShardTask,
        lease: ExitStack,
        writer: ThreadPoolExecutor,
        max_int8_error: float,
    ) -> None:
        self._batches: queue.Queue[NDArray[np.float16] | None] = queue.Queue(maxsize=2)
        self._abandoned = threading.Event()
        self._cause: Exception | None = None
        self._store, self._task, self._lease = store, task, lease
        self._max_int8_error = max_int8_error
        self._written = writer.submit(self._write)

    def put(self, grids: NDArray[np.float16] | None) -> None:
        """Hand over one batch, or None after the last; raises what writing raised."""
        while True:
            try:
                return self._batches.put(grids, timeout=0.1)
            except queue.Full:
                if self._written.done():
                    self._written.result()

    def wait(self) -> None:
        """Wait until the shard is committed; raises what writing raised."""
        self._written.result()

    def failed(self) -> bool:
        """Whether writing ended in an error."""
        return self._written.done() and self._written.exception() is not None

    def abandon(self, cause: Exception | None) -> None:
        """Give the shard up uncommitted; ``cause`` is what was wrong with it, None where that was another one."""
        self._cause = cause
        self._abandoned.set()

    def _write(self) -> None:
        with self._lease:
            self._store.write(self._task, self._grids(), max_error=self._max_int8_error)

    def _grids(self) -> Iterator[tuple[NDArray[np.float16], None]]:
        while True:
            try:
                batch = self._batches.get(timeout=0.1)
            except queue.Empty:
                if self._abandoned.is_set():
                    raise self._cause or CancelledError from None
                continue
            if batch is None:
                return
            for grid in batch:
                yield grid, None


class _Pipeline:
    """Render → encode → write, each in threads of its own, across the boundaries of shards."""

    def __init__(
        self,
        source: ViewSource,
        batches: Batches,
        store: Shelf,
        tiles: Mapping[str, Tile],
        max_int8_error: float,
        watch: Watch = nullcontext,
    ) -> None:
        self._source, self._batches, self._store, self._tiles = source, batches, store, tiles
        self._max_int8_error, self._watch = max_int8_error, watch
        self._shards: deque[_Shard] = deque()

    def run(self, tasks: Sequence[ShardTask], threads: int, counter: Counter) -> bool:
        """Encode and write the shards that nobody else holds; return whether there was one."""
        wrote = False
        current: _Shard | None = None
        with ThreadPoolExecutor(threads, "render") as renderers, ThreadPoolExecutor(1, "write") as writer:
            rendered = self._rendered(tasks, renderers, writer, ahead=2 * self._batches.size + threads)
            try:
                for shard, views in groupby(rendered, key=itemgetter(0)):
                    current = shard
                    while batch := [view.result() for _, view in islice(views, self._batches.size)]:
                        shard.put(self._encode(batch))
                        counter.add(len(batch))
                        while self._shards[0].failed():
                            self._shards[0].wait()
                    shard.put(None)
                    wrote = True
                    while len(self._shards) > 1 and self._shards[0] is not shard:
                        self._shards.popleft().wait()
                while self._shards:
                    self._shards.popleft().wait()
            except BaseException as error:
                fault = error if isinstance(error, Exception) else None
                if any(shard.failed() for shard in self._shards):
                    fault = None  # of one that was being written, which knows it
                for shard in self._shards:
                    shard.abandon(fault if shard is current else None)
                renderers.shutdown(wait=False, cancel_futures=True)
                raise
        return wrote

    def _rendered(
        self,
        tasks: Sequence[ShardTask],
        renderers: ThreadPoolExecutor,
        writer: ThreadPoolExecutor,
        ahead: int,
    ) -> Iterator[tuple[_Shard, Future[NDArray[np.uint8]]]]:
        """Yield every view of the shards that could be leased, rendered up to ``ahead`` views in advance."""
        waiting: deque[tuple[_Shard, Future[NDArray[np.uint8]]]] = deque()
        for task in tasks:
            lease = ExitStack()
            if not lease.enter_context(self._store.lease(task)):
                continue
            lease.enter_context(self._watch(task))
            shard = _Shard(self._store, task, lease, writer, self._max_int8_error)
            self._shards.append(shard)
            for row in task.rows:
                waiting.append((shard, renderers.submit(self._checked_pixels, row)))
                if len(waiting) > ahead:
                    yield waiting.popleft()
        yield from waiting

    def _encode(self, pixels: list[NDArray[np.uint8]]) -> NDArray[np.float16]:
        return self._batches.encode(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))

    def _checked_pixels(self, row: ViewRow) -> NDArray[np.uint8]:
        planned = PlannedView(self._tiles[row.tile], row.view)
        pixels = self._source.pixels(planned)
        if (found := view_sha256(pixels)) != row.pixels:
            raise IdentityMismatch(
                f"The pixels of {planned} are not the ones recorded in the views store "
                f"(sha256 {found[:12]}, recorded {row.pixels[:12]})",
                where=planned.tile.record.path,
                remedy="The image changed while it was being read, or a reader library decodes it differently: "
                "extract again once it is stable.",
            )
        return pixels
