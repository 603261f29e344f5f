"""What is said of a cache's progress is what planning would do about it."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from store import GridSpec, GridStore, ShardTask, ViewRow
from store.progress import Progress, progress, sighted

SPEC = GridSpec("tokens", (2, 2, 2), "float16", ("d", "h", "w"))


def rows(tiles: list[int], views: int) -> list[ViewRow]:
    return [ViewRow(f"{tile:064x}", view, f"tile_{tile}", "") for view in range(views) for tile in tiles]


def write(store: GridStore, task: ShardTask) -> None:
    store.write(task, ((np.zeros(SPEC.shape, np.float16), None) for _ in task.rows))


def seen(store: GridStore, wanted: list[ViewRow]) -> Progress:
    parts, faults = sighted(store)
    assert not faults
    return progress(parts, {row.key for row in wanted})


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000), first=st.integers(1, 12), then=st.integers(1, 12), views=st.integers(1, 3)
)
def test_what_is_left_is_what_planning_returns(seed: int, first: int, then: int, views: int) -> None:
    draw = random.Random(seed)
    with TemporaryDirectory() as folder:
        store = GridStore.at(Path(folder), "toy", {"of": "test"}, SPEC, {}, create=True)
        for tiles in (range(first), range(first // 2, first + then)):
            for task in store.plan(rows(list(tiles), views), shard_views=draw.randint(1, 4)):
                if draw.random() < 0.5:
                    write(store, task)
        for path in store.path.glob("part-*/tokens/c.*"):
            if draw.random() < 0.2:
                path.unlink()
        wanted = rows(
            draw.sample(range(first + then + 3), draw.randint(1, first + then)), draw.randint(1, views)
        )
        tiles_wanted = {row.tile for row in wanted}
        before = seen(store, wanted)
        tasks = store.plan(wanted, shard_views=2, can_make=lambda row: row.tile in tiles_wanted)
        after = seen(store, wanted)
        assert {(task.part, task.shard) for task in tasks} == after.left
        assert before.left <= after.left
        assert after.unplanned == 0
        assert (
            before.views
            == after.views
            == len(wanted) - len(store.reader().missing([row.key for row in wanted]))
        )
        planned_now = {
            row.key for task in tasks if (task.part, task.shard) not in before.left for row in task.rows
        }
        assert before.unplanned == len(planned_now & {row.key for row in wanted})
        lost = {(task.part, task.shard) for task in tasks} & before.lost
        assert lost == before.lost
        for task in tasks:
            write(store, task)
        done = seen(store, wanted)
        assert (done.views, done.left, done.lost, done.unplanned) == (
            len(wanted),
            frozenset(),
            frozenset(),
            0,
        )
