"""A cache in the int8 form: written, read, read by others, refused and damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import storekit as kit
import tensorstore
import xarray
import zarr

from store import GridSpec, GridStore, open_labelled, verify
from store.errors import DamagedGrid, IdentityMismatch, InputError
from store.int8 import decode, encode
from store.parts import part_folders
from store.records import ShardRecord, label
from store.shardfile import ShardWriter

INT8 = replace(kit.TOKENS, encoding="int8")
ROWS = kit.rows_of(6, 2)  # three shards of four views


def stored_of(row) -> np.ndarray:
    return encode(kit.grid_of(row))[0]


def values_of(row) -> np.ndarray:
    return decode(stored_of(row)).reshape(INT8.shape)


@pytest.fixture
def store(tmp_path: Path) -> GridStore:
    made = kit.store_at(tmp_path / "cache", INT8)
    assert kit.fill(made, ROWS) == 3
    return made


def test_the_spec_says_what_is_read_and_what_is_stored() -> None:
    assert (INT8.shape, INT8.dtype, INT8.nbytes) == ((3, 4, 5), "float16", 120)
    assert (INT8.stored_shape, INT8.stored_dtype, INT8.stored_dims) == ((3, 28), "uint8", ("d", "packed"))
    assert INT8.stored_nbytes == 84
    exact = kit.TOKENS
    assert (exact.stored_shape, exact.stored_dtype, exact.stored_dims) == (
        exact.shape,
        "float16",
        exact.dims,
    )
    assert exact.stored_nbytes == exact.nbytes
    for spec in (INT8, exact, kit.MASKS):
        assert GridSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "uint8", "encoding": "int8"}, "float16 grids of two axes"),
        ({"shape": (3,), "dims": ("d",), "encoding": "int8"}, "float16 grids of two axes"),
        ({"dims": ("packed", "h", "w"), "encoding": "int8"}, "packed"),
        ({"encoding": "int4"}, "no encoding 'int4'"),
    ],
)
def test_what_has_no_int8_form_is_refused(changes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(kit.TOKENS, **changes)


def test_grids_are_read_as_float16_and_in_their_stored_form(store: GridStore) -> None:
    reader = store.reader()
    order = [ROWS[number] for number in (7, 0, 7, 11, 3)]
    keys = [row.key for row in order]
    wanted = np.stack([values_of(row) for row in order])
    for threads in (1, 3):
        out = np.empty((5, *INT8.shape), np.float16)
        assert reader.read_many(keys, out, threads=threads) is out
        assert out.tobytes() == wanted.tobytes()
        packed = reader.read_stored_many(keys, threads=threads)
        assert packed.shape == (5, 3, 28) and packed.dtype == np.uint8
        assert packed.tobytes() == np.stack([stored_of(row) for row in order]).tobytes()
    assert reader.read(keys[0]).tobytes() == wanted[0].tobytes()
    with pytest.raises(ValueError, match="uint8 array of shape"):
        reader.read_stored_many(keys, np.empty((5, *INT8.shape), np.float16))


def test_the_stored_form_of_an_exact_cache_is_its_values(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path)
    kit.fill(store, ROWS)
    keys = [row.key for row in ROWS]
    assert store.reader().read_stored_many(keys).tobytes() == store.reader().read_many(keys).tobytes()
    assert store.reader().encoding_error() is None


def test_what_int8_cost_is_kept_with_each_view_and_summed_up(store: GridStore) -> None:
    reader = store.reader()
    errors = [encode(kit.grid_of(row))[1] for row in ROWS]
    for row, error in zip(ROWS, errors, strict=True):
        assert reader.meta(row.key) == {**kit.meta_of(row), "int8": {"rms": error.rms, "worst": error.worst}}
    found = reader.encoding_error()
    assert found is not None and found.views == 12
    assert found.mean_rms == pytest.approx(np.mean([error.rms for error in errors]))
    assert found.max_rms == max(error.rms for error in errors)
    assert found.worst_channel == max(error.worst for error in errors)


def test_a_shard_taken_over_without_its_marker_keeps_what_int8_cost(store: GridStore) -> None:
    before = store.reader().encoding_error()
    store._parts()[0].manifest.unlink()
    assert store.reader().encoding_error() is None
    assert kit.fill(store, ROWS) == 0
    assert store.reader().encoding_error() == before


@pytest.mark.filterwarnings("ignore:Object at .* is not recognized:UserWarning")
def test_other_programs_read_it_and_decode_it_in_two_lines(store: GridStore) -> None:
    (part,) = part_folders(store.path)
    wanted = np.stack([values_of(row) for row in ROWS])
    array = zarr.open_array(part / "tokens", mode="r")
    assert array.shape == (12, 3, 28) and array.chunks == (1, 3, 28) and array.shards == (4, 3, 28)
    assert array.attrs["encoding"] == "int8"
    foreign = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{part / 'tokens'}/"}}
    ).result()
    for read in (lambda at: array[at], lambda at: np.asarray(foreign[at].read().result())):
        for number, row in enumerate(ROWS):
            raw = read(number)
            assert raw.tobytes() == stored_of(row).tobytes()
            s = raw[:, -8:].copy().view("<f4")
            x = raw[:, :-8] * s[:, :1] + s[:, 1:]
            assert x.astype(np.float16).tobytes() == wanted[number].tobytes()
            assert x.reshape(array.attrs["values"]["shape"]).shape == INT8.shape
    assert xarray.open_zarr(store.path, group=part.name, consolidated=False).tokens.dims == (
        "view",
        "d",
        "packed",
    )


def test_a_program_that_knows_no_markers_decodes_nan_where_nothing_is(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path, INT8)
    kit.fill(store, ROWS, limit=1)
    raw = zarr.open_array(part_folders(store.path)[0] / "tokens", mode="r")[9]
    assert np.isnan(decode(raw)).all()


def test_it_opens_as_a_labelled_data_set_of_its_values(store: GridStore) -> None:
    found = open_labelled(store.path)
    assert found.tokens.dims == ("view", "d", "h", "w") and found.tokens.dtype == np.float16
    assert found.tokens.values.tobytes() == np.stack([values_of(row) for row in ROWS]).tobytes()


def test_a_cache_of_the_other_encoding_is_not_taken_for_this_one(store: GridStore) -> None:
    with pytest.raises(IdentityMismatch, match=r"grid\.encoding: stored 'int8', wanted 'exact'"):
        kit.store_at(store.path.parent, kit.TOKENS)


def grid_with_a_spike(row) -> np.ndarray:
    rng = np.random.default_rng(row.view)
    grid = rng.standard_normal((3, 40, 40)).astype(np.float16)
    if row == ROWS[2]:
        grid[:, 7, 7] = 60
    return grid


def test_a_view_that_int8_would_spoil_is_refused_by_name_and_nothing_of_its_shard_is_stored(
    tmp_path: Path,
) -> None:
    store = kit.store_at(tmp_path, GridSpec("tokens", (3, 40, 40), "float16", ("d", "h", "w"), "int8"))
    (task, *_) = store.plan(ROWS, shard_views=4)
    error = encode(grid_with_a_spike(ROWS[2]))[1]
    assert error.rms > 0.02
    with pytest.raises(InputError, match="tile train_2, view 0") as caught:
        store.write(task, ((grid_with_a_spike(row), None) for row in task.rows), max_error=0.01)
    said = str(caught.value)
    assert f"{error.rms:.2%}" in said and f"{error.worst:.2%}" in said and "1.00%" in said
    assert "float16" in said and "raise the limit" in said
    assert len(store.reader()) == 0 and not kit.shard_files(store)
    assert not list(store.path.rglob("*.partial"))
    store.write(task, ((grid_with_a_spike(row), None) for row in task.rows), max_error=error.rms)
    assert store.reader().meta(ROWS[2].key)["int8"] == error._asdict()


def test_values_that_are_not_finite_are_refused_before_they_are_encoded(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path, INT8)
    (task, *_) = store.plan(ROWS, shard_views=4)
    bad = kit.grid_of(ROWS[1])
    bad[2, 1, 3] = np.inf
    with pytest.raises(InputError, match=r"the first at d 2, h 1, w 3.*\[tile train_1, view 0\]"):
        store.write(task, [(kit.grid_of(ROWS[0]), None), (bad, None)])


def test_the_name_of_the_error_among_the_metadata_is_taken(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path, INT8)
    (task, *_) = store.plan(ROWS, shard_views=4)
    with pytest.raises(InputError, match="'int8', which is taken"):
        store.write(task, [(kit.grid_of(row), {"int8": 1}) for row in task.rows])


def test_a_flipped_bit_anywhere_in_a_chunk_is_found_and_named(store: GridStore) -> None:
    path = kit.shard_files(store)[1]
    good = path.read_bytes()
    opened_before = store.reader()
    index = np.frombuffer(good[-4 - 4 * 16 : -4], "<u8").reshape(4, 2)
    rows = store._parts()[0].shard_rows(1)
    found = 0
    for slot, (offset, length) in enumerate(index.tolist()):
        for at in range(offset, offset + length, 5):
            data = bytearray(good)
            data[at] ^= 1 << (at % 8)
            path.write_bytes(data)
            for ask in (opened_before.read, lambda key: opened_before.read_stored_many([key])):
                with pytest.raises(DamagedGrid) as caught:
                    ask(rows[slot].key)
                assert str(rows[slot]) in str(caught.value) and str(path) in str(caught.value)
            found += 1
        assert len(verify(store)) == 1
    assert found > 60
    path.write_bytes(good)
    assert verify(store) == []


def test_a_chunk_of_another_cache_is_not_decoded(store: GridStore, tmp_path: Path) -> None:
    other = kit.store_at(tmp_path / "other", INT8, {"encoder": "other"})
    kit.fill(other, ROWS, salt="other")
    mine, theirs = kit.shard_files(store)[1], kit.shard_files(other)[1]
    mine.write_bytes(theirs.read_bytes())
    for row in store._parts()[0].shard_rows(1):
        with pytest.raises(DamagedGrid, match=f"tile {row.name}"):
            store.reader().read(row.key)
    assert len(verify(store)) == 1


def test_a_scale_that_is_not_a_number_is_found_by_verify(tmp_path: Path) -> None:
    store = kit.store_at(tmp_path, INT8)
    store.plan(ROWS, shard_views=12)
    (part,) = store._parts()
    path, identity = part.shard_path(0), part.shard_id(0)
    with ShardWriter(path.with_name("made"), 12, INT8.content) as writer:
        for number, row in enumerate(ROWS):
            stored = stored_of(row)
            if number == 5:
                stored[1, -8:-4] = 255
            writer.append(stored)
        summary = writer.finish(label(identity, (None,) * 12))
        path.with_name("made").rename(path)
    part.marker_path(0).write_bytes(ShardRecord(identity, summary, (None,) * 12).marker())
    assert verify(store) == [f"{path}: the grid of {ROWS[5]} has values that are not finite."]


def test_it_takes_about_half_the_space_of_float16(tmp_path: Path) -> None:
    spec = GridSpec("tokens", (64, 20, 20), "float16", ("d", "h", "w"))
    sizes = {}
    for one in (spec, replace(spec, encoding="int8")):
        store = kit.store_at(tmp_path / one.encoding, one)
        kit.fill(store, kit.rows_of(4, 1))
        sizes[one.encoding] = store.status().bytes
    assert sizes["int8"] < 0.58 * sizes["exact"]
