"""Converting a cache to int8: what is made, what is kept, and what a kill, a race or a refusal leaves."""

from __future__ import annotations

import hashlib
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import converter
import numpy as np
import pytest
import storekit as kit

from store import GridSpec, GridStore, verify
from store.convert import convert
from store.errors import DamagedGrid, InputError, StorageError
from store.int8 import encode

ROWS = kit.rows_of(7, 3)  # six shards of four views, the last of one
LARGE = GridSpec("tokens", (48, 24, 24), "float16", ("d", "h", "w"))


def snapshot(folder: Path) -> dict[str, tuple[int, int, str]]:
    return {
        str(path.relative_to(folder)): (
            path.stat().st_ino,
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def expect_converted(source: GridStore, target: GridStore, rows) -> None:
    """Every row is there as int8 of what the source holds, with its metadata; nothing is wrong with either."""
    found, given = target.reader(), source.reader()
    keys = [row.key for row in rows]
    assert found.missing(keys) == []
    for row, stored in zip(rows, found.read_stored_many(keys), strict=True):
        wanted, error = encode(given.read(row.key))
        assert stored.tobytes() == wanted.tobytes(), row
        assert found.meta(row.key) == {**given.meta(row.key), "int8": error._asdict()}
        assert found.row(row.key) == row
    assert verify(target) == [] and verify(source) == []


@pytest.fixture
def source(tmp_path: Path) -> GridStore:
    made = kit.store_at(tmp_path / "source", identity={**kit.IDENTITY, "encoding": "float16"})
    assert kit.fill(made, ROWS) == 6
    return made


@pytest.mark.parametrize("beside", [True, False])
def test_a_cache_is_converted_with_all_that_is_kept_in_it(
    source: GridStore, tmp_path: Path, beside: bool
) -> None:
    before = snapshot(source.path)
    root = source.path.parent if beside else tmp_path / "elsewhere"
    seen: list[tuple[int, int]] = []
    target = convert(source, root, "int8", on_progress=lambda done, total: seen.append((done, total)))
    assert snapshot(source.path) == before
    assert target.path.parent == root and target.key != source.key
    assert target.identity == {**source.identity, "encoding": "int8"}
    assert target.provenance == {**source.provenance, "converted_from": source.key}
    assert target.spec == replace(source.spec, encoding="int8")
    expect_converted(source, target, ROWS)
    assert target.reader().views() == source.reader().views()
    names = [[str(path.relative_to(one.path)) for path in kit.shard_files(one)] for one in (source, target)]
    assert names[1] == [name.removesuffix(".0") for name in names[0]]  # one axis fewer
    assert all(part.sealed() for part in target._parts())
    assert seen[0][0] == 0 and seen[-1] == (21, 21) and seen == sorted(seen)
    again = snapshot(target.path)
    assert convert(source, root, "int8") == target
    assert snapshot(target.path) == again


def test_only_finished_views_are_converted_and_the_others_when_they_are(tmp_path: Path) -> None:
    source = kit.store_at(tmp_path)
    kit.fill(source, ROWS, limit=2)
    target = convert(source, tmp_path, "int8")
    expect_converted(source, target, ROWS[:8])
    assert len(target.reader()) == 8
    kept = kit.finished(target)
    kit.fill(source, [*ROWS, *kit.rows_of(3, 2, first_view=5)])
    assert convert(source, tmp_path, "int8").path == target.path
    kit.expect_untouched(kept, target)
    expect_converted(source, target, [*ROWS, *kit.rows_of(3, 2, first_view=5)])


def test_shards_that_the_source_has_lost_since_the_plan_are_passed_over(source: GridStore) -> None:
    root = source.path.parent
    target = convert(source, root, "int8")
    for store in (source, target):
        kit.shard_files(store)[1].unlink()
    assert convert(source, root, "int8").reader().missing([row.key for row in ROWS]) == [
        row.key for row in ROWS[4:8]
    ]
    assert kit.fill(source, ROWS) == 1
    expect_converted(source, convert(source, root, "int8"), ROWS)


def test_a_damaged_source_is_named_and_its_shard_not_converted(source: GridStore) -> None:
    path = kit.shard_files(source)[2]
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedGrid, match=f"tile {ROWS[8].name}, view {ROWS[8].view}") as caught:
        convert(source, source.path.parent, "int8", threads=1)
    assert str(path) in str(caught.value)
    (target,) = (store for store in GridStore.beside(source.path.parent, "pixels") if store.key != source.key)
    assert not [row for row in ROWS[8:12] if row.key in target.reader()]
    path.unlink()
    kit.fill(source, ROWS)
    expect_converted(source, convert(source, source.path.parent, "int8"), ROWS)


def spiked(task, spike_at) -> Iterator[tuple[np.ndarray, None]]:
    for row in task.rows:
        grid = kit.grid_of(row, LARGE)
        if row == spike_at:
            grid[:, 3, 3] = 40
        yield grid, None


def test_a_view_that_int8_would_spoil_is_refused_until_the_limit_is_raised(tmp_path: Path) -> None:
    source = kit.store_at(tmp_path, LARGE)
    for task in source.plan(ROWS, shard_views=4):
        source.write(task, spiked(task, ROWS[9]))
    with pytest.raises(InputError, match="tile train_2, view 1") as caught:
        convert(source, tmp_path, "int8", threads=1, max_error=0.01)
    assert "1.00% is the limit" in str(caught.value)
    target = GridStore.at(
        tmp_path,
        "pixels",
        {**source.identity, "encoding": "int8"},
        replace(LARGE, encoding="int8"),
        {},
        create=False,
    )
    kept = kit.finished(target)
    names = {Path(path).name for path in kept}
    assert {"c.0.0.0", "c.1.0.0"} <= names and "c.2.0.0" not in names
    assert convert(source, tmp_path, "int8", max_error=0.05) == target
    kit.expect_untouched(kept, target)
    expect_converted(source, target, ROWS)
    error = target.reader().encoding_error()
    assert error is not None and 0.01 < error.max_rms < 0.05 and error.mean_rms < 0.01
    with pytest.raises(InputError, match="converted before"):
        convert(source, tmp_path, "int8", max_error=0.01)


def test_what_cannot_be_made_is_refused_and_nothing_is_created(source: GridStore, tmp_path: Path) -> None:
    target = convert(source, tmp_path / "int8", "int8")
    masks = kit.store_at(tmp_path / "masks", kit.MASKS)
    for store, encoding, said in (
        (target, "float16", "what that has lost cannot be restored"),
        (target, "int8", "is int8 already"),
        (source, "float16", "only to int8"),
        (source, "int4", "no encoding 'int4'"),
        (masks, "int8", "uint8 grids"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            convert(store, tmp_path / "none", encoding)
        assert caught.value.remedy
    assert not (tmp_path / "none").exists()


def test_a_full_disk_keeps_the_finished_shards_and_conversion_goes_on(small_disk, tmp_path: Path) -> None:
    source = kit.store_at(tmp_path / "source", LARGE)
    rows = kit.rows_of(16, 2)
    kit.fill(source, rows)
    disk = small_disk("size=700k")
    with pytest.raises(StorageError, match="The disk is full"):
        convert(source, disk, "int8")
    (target,) = GridStore.beside(disk, "pixels")
    kept = kit.finished(target)
    assert 0 < len(kept) < 8 and not list(disk.rglob("*.partial"))
    kit.expect_only_unmarked(target)
    small_disk("size=8m")
    assert convert(source, disk, "int8") == target
    kit.expect_untouched(kept, target)
    expect_converted(source, target, rows)


def test_two_processes_share_a_conversion(tmp_path: Path) -> None:
    source = kit.store_at(tmp_path / "source", LARGE)
    rows = kit.rows_of(20, 8)
    kit.fill(source, rows)
    both = [converter.start(source.path, tmp_path / "target") for _ in range(2)]
    for process in both:
        converter.go(process)
    assert [converter.end(process) for process in both] == [0, 0]
    (target,) = GridStore.beside(tmp_path / "target", "pixels")
    assert target.status().parts == 1
    expect_converted(source, target, rows)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_conversion_goes_on_from_its_finished_shards(tmp_path: Path, kills: int) -> None:
    source = kit.store_at(tmp_path / "source", LARGE)
    rows = kit.rows_of(20, 8 if kills < 5 else 20)
    kit.fill(source, rows)
    before = snapshot(source.path)
    shards = len(kit.shard_files(source))
    rng = random.Random(kills)
    root = tmp_path / "target"
    kept: dict[str, tuple[int, int, str]] = {}
    landed = 0
    for number in range(kills):
        process = converter.start(source.path, root)
        converter.go(process)
        # By the number of files there, not by the clock, which says little on a busy machine.
        enough = len(kept) + rng.randint(1, max(1, (shards - len(kept)) // (2 * (kills - number))))
        deadline = time.monotonic() + 60
        while len(list(root.glob("*/part-*/tokens/c.*[0-9]"))) < enough and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        landed += converter.end(process) == -signal.SIGKILL
        (target,) = GridStore.beside(root, "pixels")
        kit.expect_untouched(kept, target)
        assert verify(target) == []
        kept = kit.finished(target)
    assert landed == kills and 0 < len(kept) < shards
    assert convert(source, root, "int8") == target
    kit.expect_untouched(kept, target)
    expect_converted(source, target, rows)
    assert snapshot(source.path) == before
    assert not list(root.rglob("*.partial"))
