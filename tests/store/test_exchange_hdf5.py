"""A cache as one HDF5 file: what other programs see in it, and that it comes back as it was."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import exchangekit as exchange
import h5py
import numpy as np
import pytest
import storekit as kit

from store import GridSpec, GridStore, verify
from store.errors import DamagedGrid, IdentityMismatch, InputError, MissingViews, StorageError
from store.exchange import export_hdf5, import_hdf5

ROWS = kit.rows_of(5, 3)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_cache_and_its_masks_come_back_bit_for_bit(memory_path: Path, compression: str | None) -> None:
    tokens, masks = exchange.caches(memory_path / "here", ROWS)
    kit.fill(tokens, more := kit.rows_of(7, 2), shard_views=3)
    exchange.draw_masks(masks, more)
    rows = list({row.key: row for row in (*ROWS, *more)}.values())
    file = memory_path / "x.h5"
    counts: list[tuple[int, int]] = []
    done = export_hdf5(
        tokens,
        file,
        masks=masks,
        compression=compression,
        on_progress=lambda *count: counts.append(count),
    )
    assert (done.views, done.masks, done.bytes) == (len(rows), len(rows), file.stat().st_size)
    assert counts == [(number + 1, 2 * len(rows)) for number in range(2 * len(rows))]
    found = import_hdf5(file, memory_path / "there", on_progress=lambda *count: counts.append(count)).store
    assert found.key == tokens.key and counts[-1] == (2 * len(rows), 2 * len(rows))
    exchange.expect_both(memory_path / "there", rows)
    before = kit.finished(found)
    import_hdf5(file, memory_path / "there")
    kit.expect_untouched(before, found)


def test_plain_h5py_reads_everything(tmp_path: Path) -> None:
    tokens, masks = exchange.caches(tmp_path, ROWS)
    export_hdf5(tokens, tmp_path / "x.h5", masks=masks, compression="gzip")
    export_hdf5(tokens, tmp_path / "y.h5")
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["features"].shape == (15, 3, 4, 5) and file["features"].dtype == np.float16
        assert file["features"].chunks == (1, 3, 4, 5) and file["masks"].chunks == (1, 6, 7)
        reader = tokens.reader()
        order = [reader.row(key) for key in reader.views()]
        for number, row in enumerate(order):
            assert file["features"][number].tobytes() == kit.grid_of(row).tobytes()
            assert (
                hashlib.sha256(file["features"][number].tobytes()).hexdigest()
                == file["sha256"].asstr()[number]
            )
            assert file["masks"][number].tobytes() == kit.grid_of(exchange.mask_row(row), kit.MASKS).tobytes()
            assert json.loads(file["meta"][number]) == kit.meta_of(row)
            assert json.loads(file["mask_meta"][number])["draw"] == {"angle": 1.5 * row.view}
        assert list(file["tile"].asstr()[:]) == [row.name for row in order]
        assert list(file["tile_key"].asstr()[:]) == [row.tile for row in order]
        assert list(file["pixels"].asstr()[:]) == [row.pixels for row in order]
        assert list(file["view"][:]) == [row.view for row in order]
        assert json.loads(file.attrs["identity"]) == kit.IDENTITY
        assert json.loads(file.attrs["provenance"]) == exchange.PROVENANCE
        assert file.attrs["format"] == b"frostgrid-hdf5/1" and file.attrs["encoding"] == b"exact"
        assert file.attrs["key"].decode() == tokens.key and file.attrs["slug"] == b"pixels"
        assert json.loads(file.attrs["libraries"])["h5py"] == h5py.__version__
        assert json.loads(file["masks"].attrs["classes"]) == exchange.CLASSES
        assert file["masks"].attrs["key"].decode() == masks.key
    with h5py.File(tmp_path / "y.h5") as file:
        assert file["features"].compression is None and "masks" not in file
        assert file["features"][:].tobytes() == b"".join(kit.grid_of(row).tobytes() for row in order)


def test_unusual_names_and_large_provenance_survive(tmp_path: Path) -> None:
    row = kit.ViewRow(kit.tile_key("a"), 0, "Größe «3» — 組織", "")
    provenance = {"log": "x" * 200_000}
    store = GridStore.at(tmp_path, "a@b+c", {"a": [1.5, None, "é"]}, kit.TOKENS, provenance, create=True)
    for task in store.plan([row]):
        store.write(task, [(kit.grid_of(row), None)])
    export_hdf5(store, tmp_path / "x.h5")
    found = import_hdf5(tmp_path / "x.h5", tmp_path / "there").store
    assert found.provenance == provenance and found.identity == store.identity and found.slug == "a@b+c"
    assert found.reader().row(row.key) == row and found.reader().meta(row.key) == {}


def test_an_import_adds_what_a_cache_lacks_and_keeps_what_it_has(memory_path: Path) -> None:
    there = kit.store_at(memory_path / "there")
    kit.fill(there, kit.rows_of(3, 3), shard_views=2, limit=2)  # a part of five shards with two of them done
    kept = kit.finished(there)
    tokens, masks = exchange.caches(memory_path / "here", ROWS)
    export_hdf5(tokens, memory_path / "x.h5", masks=masks)
    import_hdf5(memory_path / "x.h5", memory_path / "there")
    kit.expect_untouched(kept, there)
    kit.expect_all(there, ROWS)
    assert verify(there) == [] and there.provenance == {"host": "test"}
    assert there.status().shards_done == there.status().shards_planned


def test_an_unfinished_shard_with_views_the_file_lacks_does_not_block_the_import(memory_path: Path) -> None:
    there = kit.store_at(memory_path / "there")
    there.plan(kit.rows_of(9, 1), shard_views=8)
    tokens, _ = exchange.caches(memory_path / "here", ROWS)
    export_hdf5(tokens, memory_path / "x.h5")
    import_hdf5(memory_path / "x.h5", memory_path / "there")
    kit.expect_all(there, ROWS)


def test_what_another_process_holds_is_waited_for(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, _ = exchange.caches(memory_path / "here", ROWS)
    export_hdf5(tokens, memory_path / "x.h5")
    there = kit.store_at(memory_path / "there")
    first = there.plan(ROWS, shard_views=4)[0]
    waiting = threading.Event()
    monkeypatch.setattr(time, "sleep", lambda _: waiting.set() or threading.Event().wait(0.02))
    with ThreadPoolExecutor(1) as pool:
        with there.lease(first) as mine:
            assert mine
            done = pool.submit(import_hdf5, memory_path / "x.h5", memory_path / "there")
            assert waiting.wait(20) and there.status().views_done == 11 and not done.done()
        done.result(20)
    kit.expect_all(there, ROWS)


def test_views_of_other_pixels_are_not_mixed_in(memory_path: Path) -> None:
    there = kit.store_at(memory_path / "there")
    other = [kit.ViewRow(row.tile, row.view, row.name, kit.tile_key("other")) for row in ROWS[:1]]
    kit.fill(there, other)
    tokens, _ = exchange.caches(memory_path / "here", ROWS)
    export_hdf5(tokens, memory_path / "x.h5")
    with pytest.raises(IdentityMismatch, match="train_0, view 0"):
        import_hdf5(memory_path / "x.h5", memory_path / "there")
    assert there.status().views_done == 1


def test_an_export_never_replaces_a_file(tmp_path: Path) -> None:
    tokens, _ = exchange.caches(tmp_path, ROWS)
    path = tmp_path / "x.h5"
    path.write_bytes(b"precious")
    with pytest.raises(InputError, match="never replaces"):
        export_hdf5(tokens, path)
    path.unlink()

    def meanwhile(done: int, _: int) -> None:
        if done == 3:
            path.write_bytes(b"precious")

    with pytest.raises(InputError, match="never replaces"):
        export_hdf5(tokens, path, on_progress=meanwhile)
    assert path.read_bytes() == b"precious" and not list(tmp_path.glob("*.partial"))
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(InputError, match="never replaces"):
        export_hdf5(tokens, tmp_path / "folder.h5")


def test_masks_are_found_by_pixels_index_and_name(tmp_path: Path) -> None:
    tokens, _ = exchange.caches(tmp_path / "a", ROWS)
    few = exchange.views_store(tmp_path / "few")
    exchange.draw_masks(few, ROWS[:4])
    with pytest.raises(InputError, match=r"11 of 15 views are not in the views store.*train_4, view 0"):
        export_hdf5(tokens, tmp_path / "x.h5", masks=few)
    none = exchange.views_store(tmp_path / "none")
    exchange.draw_masks(none, kit.rows_of(3, 1, first_view=7))
    assert export_hdf5(tokens, tmp_path / "none.h5", masks=none).masks == 0
    with h5py.File(tmp_path / "none.h5") as file:
        assert "masks" not in file
    assert not (tmp_path / "x.h5").exists()


def test_of_masks_before_and_after_a_correction_the_study_chooses(tmp_path: Path) -> None:
    tokens, masks = exchange.caches(tmp_path / "a", ROWS)
    exchange.draw_masks(masks, ROWS[:2], salt="corrected")
    with pytest.raises(InputError, match=r"several masks for tile train_0, view 0; tile train_1, view 0"):
        export_hdf5(tokens, tmp_path / "x.h5", masks=masks)
    chosen = {row.key: exchange.mask_row(row).key for row in ROWS[:6]}
    corrected = kit.tile_key(chosen[ROWS[0].key].tile + "corrected")
    chosen[ROWS[0].key] = kit.ViewKey(corrected, 0)
    done = export_hdf5(tokens, tmp_path / "x.h5", masks=masks, views=chosen)
    assert (done.views, done.masks) == (6, 6)
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["mask_key"].asstr()[0] == corrected
        assert sorted(file["tile_key"].asstr()[:]) == sorted(row.tile for row in ROWS[:6])
    chosen[ROWS[1].key] = exchange.mask_row(ROWS[2]).key
    with pytest.raises(InputError, match=r"train_1, view 0 was drawn beside other pixels"):
        export_hdf5(tokens, tmp_path / "y.h5", masks=masks, views=chosen)


def test_an_export_is_never_quietly_less_than_the_cache(tmp_path: Path) -> None:
    tokens, masks = exchange.caches(tmp_path, ROWS)
    missing = {**{row.key: exchange.mask_row(row).key for row in ROWS}, kit.ViewKey("0" * 64, 1): ROWS[0].key}
    with pytest.raises(MissingViews, match="000000000000, view 1"):
        export_hdf5(tokens, tmp_path / "x.h5", views=missing)
    with pytest.raises(InputError, match="Only a feature cache"):
        export_hdf5(masks, tmp_path / "x.h5")
    with pytest.raises(InputError, match="no finished view"):
        export_hdf5(kit.store_at(tmp_path / "empty"), tmp_path / "x.h5")
    shard = kit.shard_files(tokens)[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    with pytest.raises(DamagedGrid, match="train_4, view 0"):
        export_hdf5(tokens, tmp_path / "x.h5")
    shard.unlink()
    with pytest.raises(DamagedGrid, match="the file is gone"):
        export_hdf5(tokens, tmp_path / "x.h5")
    assert not list(tmp_path.glob("x.h5*"))


def test_an_int8_cache_is_exported_as_its_values_and_not_taken_back(tmp_path: Path) -> None:
    spec = GridSpec("tokens", (3, 4, 5), "float16", ("d", "h", "w"), "int8")
    store = GridStore.at(tmp_path, "pixels", {"encoding": "int8"}, spec, {}, create=True)
    for task in store.plan(ROWS):
        store.write(task, ((kit.grid_of(row), None) for row in task.rows), max_error=1.0)
    export_hdf5(store, tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5") as file:
        assert file.attrs["encoding"] == b"int8" and file["features"].dtype == np.float16
        keys = store.reader().views()
        assert file["features"][:].tobytes() == store.reader().read_many(keys).tobytes()
    with pytest.raises(InputError, match=r"int8 form.*zip"):
        import_hdf5(tmp_path / "x.h5", tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("stride", [29, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_exports_leave_nothing_and_killed_imports_are_resumed(memory_path: Path, stride: int) -> None:
    rows = kit.rows_of(5, 2)
    tokens, masks = exchange.caches(memory_path / "here", rows)
    file = memory_path / "x.h5"
    step = 0
    while exchange.killed_at(step := step + stride // 3, lambda: export_hdf5(tokens, file, masks=masks)):
        if file.exists():  # killed between its name and the end
            import_hdf5(file, memory_path / "early")
            exchange.expect_both(memory_path / "early", rows)
            file.unlink()
    assert step > 30 and not list(memory_path.glob("*.partial"))
    exchange.expect_killed_imports_are_resumed(
        lambda root: import_hdf5(file, root), memory_path, rows, stride=stride
    )


def test_a_full_disk_ends_export_and_import_cleanly(
    small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    big = GridSpec("tokens", (16, 32, 32), "float16", ("d", "h", "w"))
    rows = kit.rows_of(12, 4)
    store = kit.store_at(tmp_path, big)
    kit.fill(store, rows)
    disk = small_disk("size=1m")
    with pytest.raises(StorageError, match=r"not enough room: 1\.6 MB are needed"):
        export_hdf5(store, disk / "x.h5")
    written: list[int] = []
    with pytest.raises(StorageError, match=r"disk is full.*another folder"):
        export_hdf5(store, disk / "x.h5", compression="gzip", on_progress=lambda n, _: written.append(n))
    assert list(disk.iterdir()) == []
    assert 20 < len(written) < 47  # it stops when the disk is full, not at the end
    export_hdf5(store, tmp_path / "x.h5")
    with pytest.raises(StorageError, match="disk is full"):
        import_hdf5(tmp_path / "x.h5", disk)
    there = kit.store_at(disk, big)
    kept = kit.finished(there)
    assert 0 < len(kept) < 6
    small_disk("size=8m")
    import_hdf5(tmp_path / "x.h5", disk)
    kit.expect_untouched(kept, there)
    kit.expect_all(there, rows)
