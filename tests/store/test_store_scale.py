"""Many views and many shards: tables in columns, listing without a look at any shard, reading without waste."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import storekit as kit

from store import GridSpec, ViewKey, verify
from store.errors import DamagedGrid
from store.parts import create_part
from store.rows import ViewRow
from store.table import RowTable
from store.whereabouts import Whereabouts

BIG = GridSpec("tokens", (3, 16, 20), "float16", ("d", "h", "w"))
TABLE = {"tiles": [{"tile": "aa", "name": "a"}], "tile": [0, 0], "view": [0, 1], "pixels": ["", "ff"]}


def test_a_table_in_columns_is_the_sequence_of_its_rows() -> None:
    rows = [*kit.rows_of(5, 3), ViewRow(kit.tile_key("train_1"), 9, "another name of the same tile", "")]
    table = RowTable.of(rows)
    assert list(table) == rows and len(table) == 16 and table[-1] == rows[-1] and table[7] == rows[7]
    assert table[4:9] == tuple(rows[4:9]) and table[14:99] == tuple(rows[14:])
    assert list(table.keys()) == [row.key for row in rows]
    assert RowTable.from_json(table.to_json()) == table
    assert list(RowTable.of([])) == [] and RowTable.from_json(RowTable.of([]).to_json()) == RowTable.of([])
    with pytest.raises(IndexError):
        table[16]


@pytest.mark.parametrize(
    "change",
    [
        {"tile": [0, 1]},
        {"tile": [0, -1]},
        {"tile": [0]},
        {"tile": [0, 0.0]},
        {"tile": [0, True]},
        {"view": [0, "1"]},
        {"view": [0, 1, 2]},
        {"view": [0, -1]},
        {"view": [0, 1 << 31]},
        {"pixels": ["", None]},
        {"tiles": []},
        {"tiles": [{"tile": "aa"}]},
        {"pixels": 3},
    ],
)
def test_a_table_that_does_not_fit_together_is_refused(change: dict[str, Any]) -> None:
    assert len(RowTable.from_json(TABLE)) == 2
    with pytest.raises((KeyError, TypeError, ValueError)):
        RowTable.from_json({**TABLE, **change})


def test_views_are_found_where_a_plain_search_finds_them(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    rows = kit.rows_of(7, 5)
    rng = random.Random(0)
    for _ in range(5):
        create_part(store.path, store.key, store.spec, rng.sample(rows, 17), rng.choice([3, 4, 5]))
    parts = store._parts()
    assert len(parts) == 5
    for _ in range(30):
        shards = [set(rng.sample(range(part.shards), rng.randint(0, part.shards))) for part in parts]
        expected: dict[ViewKey, tuple[int, int]] = {}
        for number, part in enumerate(parts):
            for at, row in enumerate(part.rows):
                if at // part.slots in shards[number]:
                    expected.setdefault(row.key, (number, at))
        found = Whereabouts(parts, shards)
        assert {row.key: found.get(row.key) for row in rows if row.key in found} == expected
        assert len(found) == len(expected) and found.keys() == sorted(expected, key=expected.__getitem__)
        assert found.places() == sorted(expected.values())
        assert found.get(ViewKey("nothing", 0)) is None and ViewKey("nothing", 0) not in found


def test_listing_a_store_looks_at_no_shard(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    rows = kit.rows_of(10, 2)
    kit.fill(store, rows)
    kit.fill(store, kit.rows_of(10, 3), limit=2)
    before = store.status()
    assert (before.views_planned, before.views_done) == (30, 28)
    assert (before.shards_planned, before.shards_done, before.parts) == (8, 7, 2)
    assert before.bytes == sum(path.stat().st_size for path in kit.shard_files(store))
    for path in kit.shard_files(store):
        path.unlink()
        path.symlink_to(tmp_path / "nowhere")  # a name that can be listed and nothing that can be looked at
    assert kit.store_at(tmp_path).status() == before
    assert store.reader().views() == [] and len(verify(store)) == 7


def test_a_shard_that_is_gone_is_not_listed_as_done(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    kit.fill(store, kit.rows_of(8, 1))
    kit.shard_files(store)[1].unlink()
    status = store.status()
    assert (status.views_done, status.shards_done, status.views_planned) == (4, 1, 8)


def test_reads_of_grids_of_all_sizes_by_many_threads_at_once_do_not_mix(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path, BIG)
    rows = kit.rows_of(24, 1)
    values = [
        np.full(BIG.shape, n, np.float16) if n % 5 else kit.grid_of(row, BIG) for n, row in enumerate(rows)
    ]
    at = {row.key: number for number, row in enumerate(rows)}
    for task in store.plan(rows, shard_views=4):
        store.write(task, ((values[at[row.key]], None) for row in task.rows))
    reader, keys = store.reader(), [row.key for row in rows]
    sizes = {path.stat().st_size for path in kit.shard_files(store)}
    assert len(sizes) > 1

    def read(seed: int) -> bool:
        order = random.Random(seed).choices(range(24), k=30)
        many = reader.read_many([keys[number] for number in order], threads=seed % 3 + 1)
        single = [reader.read(keys[number]) for number in order]
        return all(
            grid.tobytes() == values[number].tobytes() == one.tobytes()
            for grid, one, number in zip(many, single, order, strict=True)
        )

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read, range(60)))


def test_a_disk_that_gives_a_few_bytes_at_a_time_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = kit.store_at(tmp_path)
    rows = kit.rows_of(8, 1)
    kit.fill(store, rows)
    preadv = os.preadv

    def slow(descriptor: int, buffers: Any, offset: int) -> int:
        return preadv(descriptor, [memoryview(buffers[0])[:7]], offset)

    monkeypatch.setattr(os, "preadv", slow)
    kit.expect_all(store, rows)
    assert verify(store) == []
    # A file that is cut after it was looked at ends in an error, not in a loop or in what the memory held before.
    reader = store.reader()
    reader.read(rows[0].key)
    monkeypatch.setattr(os, "preadv", lambda descriptor, buffers, offset: 0)
    with pytest.raises(DamagedGrid, match=r"train_0, view 0.*ends too early"):
        reader.read(rows[0].key)
