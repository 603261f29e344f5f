"""What is written is read back bit for bit, by this reader and by others."""

from __future__ import annotations

import json
import shutil
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import storekit as kit
import tensorstore
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from store import GridSpec, ViewKey, open_labelled, verify
from store.parts import load_part, part_folders
from store.records import ShardRecord
from store.shardfile import scan


@st.composite
def _stores(draw: st.DrawFn):
    axes = draw(st.integers(1, 4))
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=axes, max_size=axes)))
    dtype = draw(st.sampled_from(["float16", "uint8"]))
    spec = GridSpec("grid", shape, dtype, tuple("abcd"[:axes]))
    views = draw(st.integers(1, 11))
    finite = {"allow_nan": False, "allow_infinity": False} if dtype == "float16" else {}
    elements = hnp.from_dtype(np.dtype(dtype), **finite)
    return spec, draw(hnp.arrays(dtype, (views, *shape), elements=elements)), draw(st.integers(1, 6))


@settings(max_examples=60, deadline=None)
@given(_stores())
def test_any_shape_and_any_value_comes_back_bit_for_bit(case) -> None:
    spec, values, shard_views = case
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        store = kit.store_at(folder, spec)
        rows = kit.rows_of(len(values), 1)
        at = {row.key: number for number, row in enumerate(rows)}
        for task in store.plan(rows, shard_views=shard_views):
            store.write(task, ((values[at[row.key]], None) for row in task.rows))
        got = store.reader().read_many([row.key for row in rows])
        assert got.dtype == values.dtype and got.tobytes() == values.tobytes()
        (part,) = part_folders(store.path)
        assert zarr.open_array(part / "grid", mode="r")[:].tobytes() == values.tobytes()
        assert verify(store) == []
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("spec", [kit.TOKENS, kit.MASKS], ids=["tokens", "masks"])
def test_other_programs_read_every_shard_alike(tmp_path: Path, spec: GridSpec) -> None:
    store = kit.store_at(tmp_path, spec)
    rows = kit.rows_of(7, 3)
    kit.fill(store, rows)
    (part,) = part_folders(store.path)
    wanted = np.stack([kit.grid_of(row, spec) for row in rows])
    group = zarr.open_group(store.path, mode="r")
    assert group.attrs["key"] == store.key
    array = group[part.name][spec.name]
    assert array.shards == (4, *spec.shape) and array.chunks == (1, *spec.shape)
    assert array[:].tobytes() == wanted.tobytes()
    assert [array[number].tobytes() for number in range(21)] == [grid.tobytes() for grid in wanted]
    names = zarr.open_group(part, mode="r").attrs["tiles"]
    assert [names[number] for number in zarr.open_array(part / "tile", mode="r")[:]] == [r.name for r in rows]
    assert zarr.open_array(part / "aug", mode="r")[:].tolist() == [row.view for row in rows]
    foreign = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{part / spec.name}/"}}
    ).result()
    assert np.asarray(foreign.read().result()).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("spec", [kit.TOKENS, kit.MASKS], ids=["tokens", "masks"])
def test_a_shard_written_by_zarr_python_is_read_alike(tmp_path: Path, spec: GridSpec) -> None:
    store = kit.store_at(tmp_path, spec)
    rows = kit.rows_of(6, 1)
    store.plan(rows, shard_views=4)
    (folder,) = part_folders(store.path)
    array = zarr.open_array(folder / spec.name, mode="r+", config={"write_empty_chunks": True})
    array[:] = np.stack([kit.grid_of(row, spec) for row in rows])
    part = load_part(folder, store.key, store.spec)
    for shard in range(part.shards):
        views = len(part.shard_rows(shard))
        summary, label = scan(part.shard_path(shard), part.slots, views)
        assert label == b""
        record = ShardRecord(part.shard_id(shard), summary, (None,) * views)
        part.marker_path(shard).write_bytes(record.marker())
    got = store.reader().read_many([row.key for row in rows])
    assert got.tobytes() == np.stack([kit.grid_of(row, spec) for row in rows]).tobytes()


@pytest.mark.filterwarnings("ignore:Object at .* is not recognized:UserWarning")
def test_a_part_opens_as_a_labelled_dataset_in_plain_xarray(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    rows = kit.rows_of(5, 2)
    kit.fill(store, rows)
    (part,) = part_folders(store.path)
    found = xarray.open_zarr(store.path, group=part.name, consolidated=False)
    assert found.tokens.dims == ("view", "d", "h", "w") and found.tokens.dtype == np.float16
    assert set(found.coords) == {"tile", "aug"}
    picked = found.tokens.isel(view=7).values
    assert picked.tobytes() == kit.grid_of(rows[7]).tobytes()
    assert found.attrs["tiles"][int(found.tile[7])] == rows[7].name


def test_a_cache_opens_as_one_labelled_dataset_over_all_parts(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    kit.fill(store, kit.rows_of(5, 2))
    kit.fill(store, kit.rows_of(5, 4))
    found = open_labelled(store.path)
    assert found.sizes == {"view": 20, "d": 3, "h": 4, "w": 5}
    assert json.loads(found.attrs["identity"]) == store.identity
    for number in range(20):
        key = ViewKey(str(found.tile_key[number].item()), int(found.view[number]))
        assert str(found.tile[number].item()) == store.reader().row(key).name
        assert found.tokens[number].values.tobytes() == kit.grid_of(key).tobytes()
    assert found.sel(view=0).tile.size == 5
    assert open_labelled(kit.store_at(tmp_path / "empty").path).sizes["view"] == 0


def test_a_program_that_knows_no_markers_reads_no_plausible_value_where_nothing_is(tmp_path: Path) -> None:
    for spec in (kit.TOKENS, kit.MASKS):
        store = kit.store_at(tmp_path / spec.name, spec)
        kit.fill(store, kit.rows_of(8, 1), limit=1)
        hole = zarr.open_array(part_folders(store.path)[0] / spec.name, mode="r")[6]
        assert (hole == 255).all() if spec.dtype == "uint8" else np.isnan(hole).all()


def test_reading_many_keeps_the_order_asked_for_and_fills_the_given_array(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    rows = kit.rows_of(7, 3)
    kit.fill(store, rows)
    order = [rows[number].key for number in np.random.default_rng(0).integers(0, 21, 40)]
    reader = store.reader()
    for threads in (1, 2, 5):
        out = np.full((40, 3, 4, 5), np.nan, dtype=np.float16)
        assert reader.read_many(order, out, threads=threads) is out
        assert out.tobytes() == b"".join(kit.grid_of(key).tobytes() for key in order)
    one = np.empty((3, 4, 5), dtype=np.float16)
    assert reader.read(order[0], one) is one and one.tobytes() == kit.grid_of(order[0]).tobytes()
    assert reader.read_many([]).shape == (0, 3, 4, 5)
    for wrong in (np.empty((3, 4, 6), np.float16), np.empty((3, 4, 5), np.float32), one.T):
        with pytest.raises(ValueError, match="C-contiguous float16"):
            reader.read(order[0], wrong)


def test_the_memory_of_the_writer_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    spec = GridSpec("tokens", (64, 64, 64), "float16", ("d", "h", "w"))
    store = kit.store_at(tmp_path, spec)
    rows = kit.rows_of(48, 1)
    (task,) = store.plan(rows, shard_views=48)
    grid = kit.grid_of(rows[0], spec)
    tracemalloc.start()
    try:
        store.write(task, ((grid, None) for _ in task.rows))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert shard_bytes(store) > 20 * grid.nbytes
    assert peak < 5 * grid.nbytes


def shard_bytes(store) -> int:
    return sum(path.stat().st_size for path in kit.shard_files(store))
