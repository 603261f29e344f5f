"""Every way a stored file can go wrong is noticed, named, and mended without touching anything else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import storekit as kit
import zarr

from store import GridStore, ShardTask, open_labelled, verify
from store.documents import encode
from store.errors import DamagedGrid, FrostgridError, InputError, MissingViews, VerificationError
from store.records import ShardRecord
from store.shardfile import HOLE, ShardFault, ShardSummary, ShardWriter, read_chunk, read_index, scan

ROWS = kit.rows_of(6, 2)  # three shards of four views


@pytest.fixture(params=["sealed", "unsealed"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> GridStore:
    made = kit.store_at(tmp_path / "cache")
    kit.fill(made, ROWS if request.param == "sealed" else [*ROWS, *kit.rows_of(4, 1, first_view=9)], limit=3)
    assert made.reader()._parts[0].sealed() == (request.param == "sealed")
    assert made.status().shards_done == 3
    return made


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def _foreign(path: Path) -> None:
    """Put the same shard of a cache that another encoder filled in its place; it has the same size."""
    root = path.parents[3] / "foreign"
    other = kit.store_at(root, identity={"encoder": "other"})
    kit.fill(other, ROWS, salt="other")
    source = next(file for file in kit.shard_files(other) if file.name == path.name)
    assert source.stat().st_size == path.stat().st_size
    shutil.copyfile(source, path)


def _swap(path: Path) -> None:
    """Exchange it with its neighbour of the same size."""
    other = path.with_name(path.name.replace("c.1", "c.0"))
    mine, theirs = path.read_bytes(), other.read_bytes()
    assert len(mine) == len(theirs)
    path.write_bytes(theirs)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped bit in the first chunk": lambda path: _flip(path, 40),
    "zeroed stretch": lambda path: path.write_bytes(bytes(128) + path.read_bytes()[128:]),
    "flipped bit in the index": lambda path: _flip(path, -30),
    "flipped bit in the checksum of the index": lambda path: _flip(path, -2),
    "cut by one byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "cut to its index": lambda path: path.write_bytes(path.read_bytes()[-68:]),
    "longer by one byte": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "turned into a folder": _folder,
    "replaced by a shard of another cache": _foreign,
    "replaced by its neighbour": _swap,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_named_and_mended_by_deleting_that_file(
    store: GridStore, damage: Callable[[Path], object]
) -> None:
    opened_before = store.reader()
    path = kit.shard_files(store)[1]
    hurt = store.reader()._parts[0].shard_rows(1)
    others = [row for row in ROWS if row not in hurt]
    kept = {name: state for name, state in kit.finished(store).items() if name != str(path)}
    damage(path)
    for reader in (opened_before, store.reader()):
        for ask in (lambda r=reader: r.read(hurt[0].key), lambda r=reader: r.read_many([hurt[0].key])):
            with pytest.raises(DamagedGrid) as caught:
                ask()
            message = str(caught.value)
            assert f"tile {hurt[0].name}, view {hurt[0].view}" in message and str(path) in message
            assert "delete it and extract again" in message
        for row in others:
            assert reader.read(row.key).tobytes() == kit.grid_of(row).tobytes()
    with pytest.raises(DamagedGrid, match="tile train_"):
        open_labelled(store.path).tokens.load()
    faults = verify(store)
    assert len(faults) == 1 and str(path) in faults[0]
    # What the message says: the file goes, and only its views are made again.
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    assert store.reader().missing([row.key for row in ROWS]) == [row.key for row in hurt]
    with pytest.raises(DamagedGrid, match="the file is gone"):
        store.reader().read(hurt[1].key)
    assert kit.fill(store, ROWS) == 1
    kit.expect_untouched(kept, store)
    kit.expect_all(store, ROWS)
    assert verify(store) == []


def test_a_cut_shard_is_mended_without_being_deleted_by_hand(store: GridStore) -> None:
    path = kit.shard_files(store)[1]
    path.write_bytes(path.read_bytes()[:100])
    assert len(store.reader().missing([row.key for row in ROWS])) == 4
    assert kit.fill(store, ROWS) == 1
    kit.expect_all(store, ROWS)
    assert verify(store) == []


def test_a_hole_inside_a_shard_is_not_read_as_a_grid(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    (task, _) = store.plan(kit.rows_of(8, 1), shard_views=4)
    part = store._parts()[0]
    # zarr-python leaves out a view that holds the fill value only.
    array = zarr.open_array(part.array_folder, mode="r+")
    values = np.stack([kit.grid_of(row) for row in part.rows])
    values[1] = np.nan
    array[:] = values
    path = part.shard_path(0)
    with pytest.raises(ShardFault, match="view 1, the file has a hole"):
        scan(path, 4, 4)
    summary = ShardSummary(path.stat().st_size, "0" * 64, _index_crc(path), (0, 0, 0, 0))
    part.marker_path(0).write_bytes(ShardRecord(part.shard_id(0), summary, (None,) * 4).marker())
    with pytest.raises(DamagedGrid, match="tile train_1, view 0 is damaged: the file has a hole"):
        store.reader().read(task.rows[1].key)


def _index_crc(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[-4:], "little")


def test_an_index_that_points_outside_of_its_file_is_refused(tmp_path: Path) -> None:
    for offset, length in [(0, 10_000), (10_000, 8), (2**63, 2**63), (HOLE, 8), (8, HOLE)]:
        index = np.array([[0, 8], [offset, length]], dtype="<u8").tobytes()
        path = tmp_path / "shard"
        path.write_bytes(bytes(64) + index + google_crc32c.value(index).to_bytes(4, "little"))
        with path.open("rb") as file, pytest.raises(ShardFault, match="points outside"):
            read_index(file.fileno(), path.stat().st_size, 2)


def test_a_whole_shard_with_another_index_or_size_than_recorded_is_refused(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    kit.fill(store, ROWS, limit=1)
    (part,) = store._parts()
    record = part.record(0)
    assert record is not None
    reader = store.reader()
    path = part.shard_path(0)
    other = replace(record, summary=replace(record.summary, index_crc32c=record.summary.index_crc32c ^ 1))
    part.marker_path(0).write_bytes(other.marker())
    with pytest.raises(DamagedGrid, match="the file is another shard than the one written here"):
        store.reader().read(ROWS[0].key)
    path.write_bytes(path.read_bytes()[1:])
    with pytest.raises(
        DamagedGrid, match=rf"is {path.stat().st_size} bytes long, {record.summary.bytes} were"
    ):
        reader.read(ROWS[0].key)


def test_a_chunk_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shard", 1, "float16") as writer:
        writer.append(np.zeros((4, 4), dtype=np.float16))
        size = writer.finish(b"").bytes
        with (tmp_path / "shard").open("rb") as file:
            index, _ = read_index(file.fileno(), size, 1)
            with pytest.raises(ShardFault, match="holds 32 bytes"):
                read_chunk(file.fileno(), index, 0, np.zeros((4, 5), dtype=np.float16))


def test_a_shard_of_another_cache_without_marker_is_not_taken_over(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path / "cache")
    tasks = store.plan(ROWS, shard_views=4)
    other = kit.store_at(tmp_path / "other", identity={"encoder": "other"})
    kit.fill(other, ROWS, salt="other")
    for source in kit.shard_files(other):
        shutil.copyfile(source, store.path / source.relative_to(other.path))
    assert store.reader().missing([row.key for row in ROWS]) == [row.key for row in ROWS]
    assert kit.fill(store, ROWS) == len(tasks)
    kit.expect_all(store, ROWS)


def test_a_lost_marker_or_manifest_costs_no_computing_and_no_metadata(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    kit.fill(store, ROWS)
    kept = kit.finished(store)
    part = store._parts()[0]
    for lose in (lambda: part.manifest.unlink(), lambda: part.manifest.write_bytes(b"")):
        lose()
        assert len(store.reader().missing([row.key for row in ROWS])) == 12
        assert kit.fill(store, ROWS) == 0
        kit.expect_untouched(kept, store)
        kit.expect_all(store, ROWS)
        assert part.sealed() and verify(store) == []


@pytest.mark.parametrize(
    "marker", [b"", b"{", b'{"format":"frostgrid-shard/1"}', b'{"format":"frostgrid-shard/2"}', b"null"]
)
def test_a_broken_marker_is_not_trusted_and_is_replaced(tmp_path: Path, marker: bytes) -> None:
    store = kit.store_at(tmp_path)
    kit.fill(store, ROWS, limit=2)
    kept = kit.finished(store)
    part = store._parts()[0]
    part.marker_path(1).write_bytes(marker)
    assert len(store.reader().missing([row.key for row in ROWS])) == 8
    assert kit.fill(store, ROWS) == 1
    kit.expect_untouched(kept, store)
    kit.expect_all(store, ROWS)


def test_the_marker_of_one_shard_does_not_vouch_for_another(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    kit.fill(store, ROWS, limit=2)
    part = store._parts()[0]
    shutil.copyfile(part.marker_path(0), part.marker_path(2))
    shutil.copyfile(part.shard_path(0), part.shard_path(2))
    assert len(store.reader().missing([row.key for row in ROWS])) == 4
    assert kit.fill(store, ROWS) == 1
    kit.expect_all(store, ROWS)


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("what", ["edited", "not JSON", "another part's", "newer", "without a shard"])
def test_a_wrong_manifest_is_refused(tmp_path: Path, what: str) -> None:
    store = kit.store_at(tmp_path / "cache")
    kit.fill(store, ROWS)
    manifest = store._parts()[0].manifest
    error: type[FrostgridError] = VerificationError
    if what == "edited":
        _edit(manifest, '"bytes":', '"bytes": 1')
    elif what == "not JSON":
        manifest.write_bytes(manifest.read_bytes()[:-20])
    elif what == "another part's":
        other = kit.store_at(tmp_path / "other", identity={"encoder": "other"})
        kit.fill(other, ROWS)
        shutil.copyfile(other._parts()[0].manifest, manifest)
    elif what == "newer":
        manifest.write_bytes(encode("manifest", 2, {}))
        error = InputError
    else:
        body = json.loads(manifest.read_bytes())
        del body["shards"]["1"], body["digest"], body["format"]
        manifest.write_bytes(encode("manifest", 1, body))
    for ask in (store.reader, lambda: store.plan(ROWS), lambda: open_labelled(store.path)):
        with pytest.raises(error, match="newer" if what == "newer" else "manifest") as caught:
            ask()
        assert str(manifest) in str(caught.value)
    faults = verify(store)
    assert len(faults) == 1 and str(manifest) in faults[0]


def test_a_table_of_views_that_was_changed_is_refused(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    kit.fill(store, ROWS)
    table = store._parts()[0].folder / "part.json"
    original = table.read_bytes()
    for change in (
        lambda: _edit(table, "train_3", "train_9"),
        lambda: table.write_bytes(b""),
        table.unlink,
        lambda: table.write_bytes(b"[]"),
    ):
        change()
        with pytest.raises(VerificationError, match=r"part\.json"):
            GridStore.open(store.path).reader()
        assert any("part.json" in fault for fault in verify(store))
        table.write_bytes(original)
    table.write_bytes(encode("part", 2, {}))
    with pytest.raises(InputError, match=r"newer than this version.*Update frostgrid"):
        GridStore.open(store.path).reader()


def test_a_part_copied_from_another_cache_is_refused(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path / "cache")
    other = kit.store_at(tmp_path / "other", identity={"encoder": "other"})
    kit.fill(other, ROWS)
    part = other._parts()[0].folder
    shutil.copytree(part, store.path / part.name)
    with pytest.raises(VerificationError, match="belongs to another cache"):
        store.reader()
    with pytest.raises(VerificationError, match="belongs to another cache"):
        store.plan(ROWS)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('"crc32c"', '"gzip"', "codecs"),
        ('"end"', '"start"', "codecs"),
        ('"float16"', '"float32"', "data_type"),
        ('"separator": "."', '"separator": "/"', "chunk_key_encoding"),
        ('"zarr_format": 3', '"zarr_format": 4', "zarr_format"),
        ('"node_type"', '"must_understand_this": 1, "node_type"', "must_understand_this"),
    ],
)
def test_an_array_of_another_form_is_refused_instead_of_guessed(
    tmp_path: Path, old: str, new: str, field: str
) -> None:
    store = kit.store_at(tmp_path)
    kit.fill(store, ROWS)
    _edit(store._parts()[0].array_folder / "zarr.json", old, new)
    with pytest.raises(VerificationError, match=f"differs in {field}"):
        store.reader()
    assert len(verify(store)) == 1


def test_verify_reports_changed_side_files(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    kit.fill(store, ROWS)
    part = store._parts()[0]
    coordinate = part.folder / "aug" / "c.0"
    original = coordinate.read_bytes()
    coordinate.write_bytes(original[::-1])
    assert [str(coordinate) in fault for fault in verify(store)] == [True]
    coordinate.write_bytes(original)
    assert verify(store) == []


def test_verify_reports_values_that_are_not_finite_although_all_checksums_are_right(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    (task,) = store.plan(kit.rows_of(4, 1), shard_views=4)
    (part,) = store._parts()
    values = np.stack([kit.grid_of(row) for row in task.rows])
    values[2, 0, 0, 0] = np.inf
    zarr.open_array(part.array_folder, mode="r+")[:] = values
    summary, _ = scan(part.shard_path(0), 4, 4)
    part.marker_path(0).write_bytes(ShardRecord(part.shard_id(0), summary, (None,) * 4).marker())
    (fault,) = verify(store)
    assert "tile train_2, view 0 has values that are not finite" in fault


def test_verify_reports_every_fault_of_every_part(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    kit.fill(store, ROWS)
    kit.fill(store, kit.rows_of(6, 4))
    files = kit.shard_files(store)
    for number in (0, 2, 4):
        _flip(files[number], 50)
    faults = verify(store)
    assert [str(files[number]) in fault for number, fault in zip((0, 2, 4), faults, strict=True)] == [
        True
    ] * 3


def test_views_never_written_are_missing_and_named(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    kit.fill(store, ROWS, limit=1)
    reader = store.reader()
    assert ROWS[0].key in reader and ROWS[4].key not in reader
    with pytest.raises(MissingViews, match=r"tile train_4, view 0 .*c\.1\.0\.0\.0.*Extract again"):
        reader.read(ROWS[4].key)
    with pytest.raises(MissingViews, match=r"train_4, view 0; tile train_5, view 0; .* and 3 more"):
        reader.read_many([row.key for row in ROWS])
    unknown = kit.rows_of(99, 1)[-1]
    for ask in (reader.read, reader.row, reader.meta):
        with pytest.raises(MissingViews, match=unknown.tile[:12]):
            ask(unknown.key)
    assert reader.row(ROWS[0].key) == ROWS[0]


def test_a_task_of_other_rows_is_not_written(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    task = store.plan(ROWS, shard_views=4)[0]
    wrong = ShardTask(task.part, 1, task.rows)
    with pytest.raises(ValueError, match="no shard 1 of the rows"):
        store.write(wrong, kit.grids(wrong))
