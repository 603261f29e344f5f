"""Stage one: every view through the frozen encoder once, into the feature cache, with all steps overlapped."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.batching import Batches
from stages.shard_pipeline import Counter, Progress, ShardPipeline, Shelf, Watch
from stages.tiles.plan import PlannedView, ViewSource, mask_rows, rendered_masks, token_rows
from stages.tiles.tiling import Tile
from store import GridReader, GridStore, ShardTask, ViewRow
from store.int8 import MAX_ERROR

WAIT_SECONDS = 2.0  # between looks at shards that another process is writing


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
    bounded queues, but that an encoder on the CPU rests while views are rendered: memory does not grow with the data
    set. Raises :class:`IdentityMismatch` naming tile and view when a
    view's pixels are not those of the views store; every committed shard stays.
    """
    tiles = {view.tile.key: view.tile for view in views}
    counter = Counter(len(views), on_progress)

    def run(tasks: Sequence[ShardTask]) -> bool:
        return ShardPipeline(source, batches, store, tiles, max_int8_error, watch).run(
            tasks, threads, counter
        )

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
    return ShardPipeline(source, batches, shelf, tiles, max_int8_error).run([task], threads, counter)


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
