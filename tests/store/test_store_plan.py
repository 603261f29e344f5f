"""Identity, planning, extension, and what is refused before anything is stored."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import storekit as kit

from store import GridSpec, GridStore, ViewRow, verify
from store.durable import remove_exactly
from store.errors import IdentityMismatch, InputError, VerificationError
from store.identity import fingerprint
from store.layout import shard_views


def test_a_store_is_named_after_what_made_it_and_found_again(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    assert store.path == tmp_path / f"pixels-{fingerprint(kit.IDENTITY)[:12]}"
    assert store.key == fingerprint(kit.IDENTITY)
    again = GridStore.at(tmp_path, "pixels", dict(kit.IDENTITY), kit.TOKENS, {"host": "other"}, create=False)
    assert again == store and again.provenance == {"host": "test"} and again.identity == kit.IDENTITY
    assert GridStore.open(store.path) == store == pickle.loads(pickle.dumps(store))
    assert store.plan([]) == [] and store.status().views_planned == 0 and store.reader().views() == []


def test_a_store_that_is_not_there_is_not_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no cache of pixels here.*Extract first"):
        GridStore.at(tmp_path / "none", "pixels", kit.IDENTITY, kit.TOKENS, {}, create=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="There is no cache here"):
        GridStore.open(tmp_path)
    with pytest.raises(InputError, match="name of a cache"):
        GridStore.at(tmp_path, "../pixels", kit.IDENTITY, kit.TOKENS, {}, create=True)


def test_an_identity_mismatch_names_the_fields_and_both_values(tmp_path: Path) -> None:
    kit.store_at(tmp_path)
    kit.store_at(tmp_path, identity={"encoder": "far away"})
    GridStore.at(tmp_path, "pixels-large", {"encoder": "x"}, kit.TOKENS, {}, create=True)
    wanted = {**kit.IDENTITY, "encoder": {"name": "pixels", "layer": 6}}
    with pytest.raises(IdentityMismatch, match=r"encoder\.layer: stored 4, wanted 6") as caught:
        GridStore.at(tmp_path, "pixels", wanted, kit.TOKENS, {}, create=False)
    assert "name" not in str(caught.value).split("differs in")[1].split("[")[0]
    with pytest.raises(IdentityMismatch, match=r"grid\.shape: stored \[3, 4, 5\], wanted \[3, 4, 6\]"):
        other = GridSpec("tokens", (3, 4, 6), "float16", ("d", "h", "w"))
        GridStore.at(tmp_path, "pixels", kit.IDENTITY, other, {}, create=True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"layer": 4', '"layer": 5', "identity in the file was changed: it gives the key"),
        ('"host": "test"', '"host": "rest"', "its digest differs"),
        ('"digest"', '"digezt"', "its digest differs"),
        ("frostgrid-cache/1", "frostgrid-cache/2", "newer than this version.*Update frostgrid"),
        ("frostgrid-cache/1", "frostgrid-cache/0", "which no version of frostgrid has written"),
        ("frostgrid-cache/1", "other/1", "not a frostgrid-cache document"),
        ('"grid"', '"gird"', "incomplete"),
        ("{", "", "not JSON"),
    ],
)
def test_a_description_that_was_changed_or_is_newer_is_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = kit.store_at(tmp_path).path
    text = (path / "cache.json").read_text()
    assert old in text
    changed = text.replace(old, new, 1).encode()
    if message in ("incomplete", "identity in the file was changed: it gives the key"):
        changed = kit.signed(changed)
    (path / "cache.json").write_bytes(changed)
    with pytest.raises((InputError, VerificationError), match=message) as caught:
        GridStore.open(path)
    assert str(path / "cache.json") in str(caught.value)
    assert caught.type is (InputError if "newer" in message else VerificationError)


def test_more_views_and_tiles_add_a_part_and_leave_the_others_alone(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    first = kit.rows_of(6, 2)
    assert kit.fill(store, first) == 3
    kept = kit.finished(store)
    documents = {path: path.read_bytes() for path in store.path.rglob("*.json")}
    more = kit.rows_of(9, 3)
    tasks = store.plan(more, shard_views=4)
    planned = [row for task in tasks for row in task.rows]
    assert planned == [row for row in more if row not in first]
    assert kit.fill(store, more) == len(tasks) == 4
    kit.expect_untouched(kept, store)
    assert all(path.read_bytes() == data for path, data in documents.items())
    kit.expect_all(store, more)
    assert store.plan(first) == store.plan(more) == []
    status = store.status()
    assert (status.parts, status.views_planned, status.views_done) == (2, 27, 27)
    assert (status.shards_planned, status.shards_done) == (7, 7)
    assert status.bytes == sum(path.stat().st_size for path in kit.shard_files(store))
    assert verify(store) == []


def test_a_plan_returns_only_the_shards_that_are_needed(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    rows = kit.rows_of(6, 2)
    assert [task.shard for task in store.plan(rows, shard_views=4)] == [0, 1, 2]
    assert [task.shard for task in store.plan(rows[8:9])] == [2]
    assert [task.shard for task in store.plan([rows[9], rows[1], rows[1]])] == [2, 0]
    assert kit.fill(store, rows[:1]) == 1
    assert [task.shard for task in store.plan(rows)] == [1, 2]
    assert store.status().parts == 1


def test_the_same_view_with_other_pixels_is_refused_and_names_the_tile(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    rows = kit.rows_of(3, 1)
    kit.fill(store, rows)
    other = ViewRow(rows[1].tile, 0, "train_1", "f" * 64)
    with pytest.raises(IdentityMismatch, match=r"tile train_1, view 0 \(stored .*, wanted ffffffffffff\)"):
        store.plan([rows[0], other])
    with pytest.raises(IdentityMismatch, match="tile new, view 0"):
        store.plan([ViewRow("a", 0, "new", "1"), ViewRow("a", 0, "new", "2")])
    unknown = ViewRow(rows[1].tile, 0, "train_1", "")
    assert store.plan([unknown]) == [] and store.status().parts == 1


def test_parts_besides_those_of_interest_are_neither_planned_nor_read(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    first, second = kit.rows_of(3, 1), kit.rows_of(6, 1)[3:]
    kit.fill(store, first)
    known = store.reader().whole_parts()
    assert len(known) == 1
    (table,) = store.path.glob("part-*/part.json")
    table.unlink()
    (task,) = store.plan(second, besides=known)
    assert store.reader(besides=known).whole_parts() == set()  # it is not finished
    store.write(task, kit.grids(task))
    reader = store.reader(besides=known)
    assert reader.views() == [row.key for row in second] and reader.whole_parts() == {task.part}
    with pytest.raises(VerificationError, match="has lost its table of views"):
        GridStore.open(store.path).reader()


@pytest.mark.parametrize(("name", "most"), [("MAX_PART_SHARDS", 2), ("MAX_PART_VIEWS", 5)])
def test_large_plans_are_split_into_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    monkeypatch.setattr(f"store.grids.{name}", most)
    store = kit.store_at(tmp_path)
    rows = kit.rows_of(10, 1)
    assert len(store.plan(rows, shard_views=2)) == 5
    assert [part.shards for part in sorted(store._parts(), key=lambda part: -part.shards)] == [2, 2, 1]
    kit.fill(store, rows)
    kit.expect_all(store, rows)


@pytest.mark.parametrize(
    ("shape", "views", "expected"),
    [
        ((1536, 37, 37), 15500, 32),
        ((384, 37, 37), 15500, 128),
        ((1536, 37, 37), 60, 8),
        ((1536, 37, 37), 300, 16),
        ((8, 4, 4), 10**6, 512),
        ((4096, 64, 64), 10**6, 8),
        ((1, 1, 1), 1, 8),
    ],
)
def test_the_size_of_a_shard_follows_the_rule(shape: tuple[int, ...], views: int, expected: int) -> None:
    assert shard_views(GridSpec("tokens", shape, "float16", ("d", "h", "w")), views) == expected


def _bad(value: float) -> np.ndarray:
    grid = kit.grid_of(kit.rows_of(1, 1)[0])
    grid[2, 1, 3] = value
    return grid


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (_bad(np.nan), "1 values that are infinite or not a number, the first at d 2, h 1, w 3"),
        (_bad(np.inf), "infinite"),
        (_bad(-np.inf), "infinite"),
        (np.zeros((3, 4, 6), np.float16), r"float16 \(3, 4, 6\), the cache holds float16 \(3, 4, 5\)"),
        (np.zeros((3, 4, 5), np.float32), "float32"),
        (np.zeros((3, 4, 5), ">f2"), ">f2"),
    ],
)
def test_a_grid_that_cannot_be_stored_is_refused_by_name(
    tmp_path: Path, grid: np.ndarray, message: str
) -> None:
    store = kit.store_at(tmp_path)
    rows = kit.rows_of(2, 2)
    (task,) = store.plan(rows, shard_views=4)
    with pytest.raises(InputError, match=message) as caught:
        store.write(task, [*list(kit.grids(task))[:3], (grid, None)])
    assert "tile train_1, view 1" in str(caught.value)
    assert kit.shard_files(store) == [] and not list(tmp_path.rglob("*.partial"))
    assert kit.fill(store, rows) == 1


def test_too_few_or_too_many_grids_store_nothing(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    (task,) = store.plan(kit.rows_of(4, 1), shard_views=4)
    good = list(kit.grids(task))
    with pytest.raises(InputError, match=r"Only 3 of 4 grids.*tile train_3, view 0"):
        store.write(task, good[:3])
    with pytest.raises(InputError, match="More than 4 grids"):
        store.write(task, [*good, good[0]])
    with pytest.raises(InputError, match="tile train_0, view 0"):
        store.write(task, [(good[0][0], {"angle": float("nan")}), *good[1:]])
    assert kit.shard_files(store) == [] and not list(tmp_path.rglob("*.partial"))


def test_largest_and_smallest_float16_values_and_ignore_masks_are_kept(tmp_path: Path) -> None:
    spec = GridSpec("tokens", (7,), "float16", ("d",))
    store = kit.store_at(tmp_path, spec)
    values = np.array([65504, -65504, 6e-8, -0.0, 0.0, 1, 2**-14], np.float16)
    (task,) = store.plan(kit.rows_of(1, 1))
    store.write(task, [(values, None)])
    assert store.reader().read(task.rows[0].key).tobytes() == values.tobytes()
    masks = kit.store_at(tmp_path / "masks", kit.MASKS)
    (task,) = masks.plan(kit.rows_of(2, 1))
    blank = np.full((6, 7), 255, np.uint8)
    masks.write(task, [(blank, {"n": 1}), (blank * 0, None)])
    reader = masks.reader()
    assert reader.read(task.rows[0].key).min() == 255 and reader.read(task.rows[1].key).max() == 0
    assert reader.meta(task.rows[0].key) == {"n": 1} and reader.meta(task.rows[1].key) == {}


def test_grids_that_are_not_contiguous_are_stored_in_their_own_order(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    (task,) = store.plan(kit.rows_of(1, 1))
    grid = kit.grid_of(task.rows[0])
    store.write(task, [(np.asfortranarray(grid), None)])
    assert store.reader().read(task.rows[0].key).tobytes() == grid.tobytes()


def test_writing_a_finished_shard_takes_no_grid(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    (task,) = store.plan(kit.rows_of(4, 1))
    store.write(task, kit.grids(task))
    kept = kit.finished(store)
    source = kit.grids(task, salt="other")
    store.write(task, source)
    assert next(source)[0].shape == (3, 4, 5)
    kit.expect_untouched(kept, store)


def test_the_manifest_lists_every_file_with_its_size_and_sha256(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    kit.fill(store, kit.rows_of(6, 2))
    part = store._parts()[0].folder
    listed = json.loads((part / "manifest.json").read_text())["files"]
    there = {str(path.relative_to(part)) for path in part.rglob("*") if path.is_file()}
    assert set(listed) == there - {"manifest.json"}
    for name, entry in listed.items():
        data = (part / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_tiles_of_equal_content_keep_their_own_names(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    rows = [ViewRow("a", 0, "first", ""), ViewRow("a", 1, "copy", ""), ViewRow("b", 0, "other", "")]
    kit.fill(store, rows)
    reader = store.reader()
    assert [reader.row(row.key).name for row in rows] == ["first", "copy", "other"]


@pytest.mark.parametrize(
    "fields",
    [
        ("tokens", (3,), "float32", ("d",)),
        ("tokens", (3, 0), "float16", ("d", "h")),
        ("tokens", (3,), "float16", ("d", "h")),
        ("tile", (3,), "float16", ("d",)),
        ("tokens", (3,), "float16", ("view",)),
        ("../x", (3,), "float16", ("d",)),
    ],
)
def test_a_grid_form_no_store_can_hold_is_refused(fields: tuple) -> None:
    with pytest.raises(ValueError):
        GridSpec(*fields)


def test_a_file_that_was_replaced_meanwhile_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "c.0"
    path.write_bytes(b"broken")
    seen = path.stat()
    path.unlink()
    path.write_bytes(b"mended")
    assert not remove_exactly(path, seen)
    assert path.read_bytes() == b"mended" and list(tmp_path.iterdir()) == [path]
    assert remove_exactly(path, path.stat()) and list(tmp_path.iterdir()) == []
    assert not remove_exactly(path, seen)


def test_an_unfinished_shard_that_can_no_longer_be_made_is_passed_over(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    rows = kit.rows_of(6, 2)
    kit.fill(store, rows, limit=1)
    kept = kit.finished(store)
    wanted = [row for row in rows if row.name != "train_5"]  # the shards 1 and 2 both hold a view of train_5
    tiles = {row.tile for row in wanted}
    tasks = store.plan(wanted, shard_views=4, can_make=lambda row: row.tile in tiles)
    planned = [row for task in tasks for row in task.rows]
    assert planned == [row for row in wanted if row not in rows[:4]]
    for task in tasks:
        store.write(task, kit.grids(task))
    assert store.plan(wanted, can_make=lambda row: row.tile in tiles) == []
    kit.expect_untouched(kept, store)
    kit.expect_all(store, wanted)
    assert kit.fill(store, rows) == 2  # the tile is back: its shards can be finished after all
    kit.expect_all(store, rows)
    assert verify(store) == []


def test_the_stores_of_one_slug_are_listed_and_broken_ones_passed_over(tmp_path: Path) -> None:
    first = kit.store_at(tmp_path)
    second = kit.store_at(tmp_path, identity={"encoder": "other"})
    broken = kit.store_at(tmp_path, identity={"encoder": "broken"})
    (broken.path / "cache.json").write_text("{")
    GridStore.at(tmp_path, "pixels-large", kit.IDENTITY, kit.TOKENS, {}, create=True)
    assert GridStore.beside(tmp_path, "pixels") == sorted([first, second], key=lambda store: store.path.name)
    assert GridStore.beside(tmp_path / "none", "pixels") == []
