"""The way of views into a feature cache: rendered, encoded and written, shard after shard, all at the same time."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stages.batching import Batches
from stages.tiles.plan import PlannedView, ViewSource
from stages.tiles.tiling import Tile
from stages.tiles.views import view_sha256
from store import ShardTask, ViewRow
from store.errors import IdentityMismatch
from store.int8 import MAX_ERROR

Progress = Callable[[int, int], None]  # views done, views to do
Watch = Callable[[ShardTask], AbstractContextManager[object]]  # entered while a shard is being made


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


class ShardPipeline:
    """Render → encode → write, each in threads of its own, across the boundaries of shards.

    Parameters as of :func:`stages.extract.extract`.
    """

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
            rendered = self._rendered(tasks, renderers, writer, threads)
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
        threads: int,
    ) -> Iterator[tuple[_Shard, Future[NDArray[np.uint8]]]]:
        """Yield every view of the shards that could be leased, rendered some views in advance.

        Beside an encoder on the same cores nothing is being rendered when a view is yielded: the threads of a product
        wait for the one whose core somebody else has, so that rendering beside them costs more than its own time.
        """
        apart = not self._batches.frees_cores
        ahead = max(self._batches.size, threads) if apart else 2 * self._batches.size + threads + 1
        waiting: deque[tuple[_Shard, Future[NDArray[np.uint8]]]] = deque()

        def taken(keep: int) -> Iterator[tuple[_Shard, Future[NDArray[np.uint8]]]]:
            if apart:
                wait(view for _, view in waiting)
            while len(waiting) > keep:
                yield waiting.popleft()

        for task in tasks:
            lease = ExitStack()
            if not lease.enter_context(self._store.lease(task)):
                continue
            lease.enter_context(self._watch(task))
            shard = _Shard(self._store, task, lease, writer, self._max_int8_error)
            self._shards.append(shard)
            for row in task.rows:
                waiting.append((shard, renderers.submit(self._checked_pixels, row)))
                if len(waiting) >= ahead:
                    yield from taken(keep=0 if apart else ahead - 1)
        yield from taken(keep=0)

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
