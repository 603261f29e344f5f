"""Pooled features in the files that CLAM and TRIDENT write, read as those programs read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exchangekit as exchange
import h5py
import numpy as np
import pytest
import storekit as kit

from store import GridSpec, GridStore, ViewRow
from store.errors import DamagedGrid, InputError, MissingViews, StorageError
from store.exchange import export_pooled

ROWS = kit.rows_of(7, 2)


def read_bag(path: Path) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """What TRIDENT's slide encoders and CLAM's data set take from a file of features."""
    with h5py.File(path, "r") as file:
        assert set(file) == {"features", "coords"}
        attributes = dict(file["features"].attrs), dict(file["coords"].attrs)
        return file["features"][:], file["coords"][:], *attributes


def test_every_image_has_the_mean_token_and_the_corner_of_its_tiles(tmp_path: Path) -> None:
    tokens, masks = exchange.caches(tmp_path, ROWS)
    counts: list[tuple[int, int]] = []
    done = export_pooled(
        tokens, tmp_path / "bags", masks=masks, on_progress=lambda *count: counts.append(count)
    )
    files = sorted((tmp_path / "bags").iterdir())
    assert [path.name for path in files] == ["slide 0.h5", "slide 1.h5"] and counts == [(4, 7), (7, 7)]
    assert (done.path, done.views) == (tmp_path / "bags", 7)
    assert done.bytes == sum(path.stat().st_size for path in files)
    for number, path in enumerate(files):
        features, coords, of_features, of_coords = read_bag(path)
        rows = [row for row in ROWS if row.view == 0 and int(row.name[-1]) % 2 == number]
        assert features.dtype == np.float32 and coords.dtype == np.int64
        expected = np.stack([kit.grid_of(row).astype(np.float64).mean(axis=(1, 2)) for row in rows])
        assert np.array_equal(features, expected.astype(np.float32)) and features.shape == (len(rows), 3)
        corners = [[x - 7, y - 7] for y, x in (exchange.place_of(row)["centre"] for row in rows)]
        assert coords.tolist() == corners
        assert of_features == {"name": path.stem, "encoder": "pixels"}
        assert of_coords == {"name": path.stem, "patch_size": 7, "patch_size_level0": 14}
        with h5py.File(path) as file:
            assert file["features"].chunks == (1, 3) and file["features"].maxshape == (None, 3)
            assert file["coords"].chunks == (1, 2) and file["coords"].maxshape == (None, 2)
            assert json.loads(file.attrs["provenance"])["licence"] == "Apache-2.0"
            assert file.attrs["key"] == tokens.key


def test_corners_off_the_image_and_between_pixels_are_whole_numbers(tmp_path: Path) -> None:
    tokens, _ = exchange.caches(tmp_path / "a", ROWS[:1])
    masks = exchange.views_store(tmp_path / "b")
    place = {"image": "x", "centre": [3.5, 10.0], "step": 1.5, "px": 7}
    exchange.draw_masks(masks, ROWS[:1], lambda row: {"pixels": row.pixels, "tile": place})
    export_pooled(tokens, tmp_path / "bags", masks=masks)
    _, coords, _, of_coords = read_bag(tmp_path / "bags" / "x.h5")
    assert coords.tolist() == [[5, -2]]  # from 4.75 and -1.75, rounded half up
    assert of_coords["patch_size_level0"] == 11  # 10.5, rounded half up


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda meta: {"pixels": meta["pixels"]},
            r"does not say where tile train_0, view 0 lies.*extract again",
        ),
        (lambda meta: {**meta, "tile": "somewhere"}, "does not say where"),
        (lambda meta: {**meta, "tile": {**meta["tile"], "centre": [1]}}, "does not say where"),
        (lambda meta: {**meta, "tile": {**meta["tile"], "step": "wide"}}, "does not say where"),
        (lambda meta: {**meta, "tile": {**meta["tile"], "image": "../../x"}}, "cannot be that of a file"),
        (lambda meta: {**meta, "tile": {**meta["tile"], "image": ".x"}}, "cannot be that of a file"),
        (lambda meta: {**meta, "tile": {**meta["tile"], "image": ""}}, "cannot be that of a file"),
        (lambda meta: {**meta, "tile": {**meta["tile"], "image": "a\0b"}}, "cannot be that of a file"),
        (
            lambda meta: {**meta, "tile": {**meta["tile"], "step": hash(meta["pixels"]) % 97 + 1}},
            "several sizes",
        ),
    ],
)
def test_places_that_make_no_file_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], words: str
) -> None:
    tokens, _ = exchange.caches(tmp_path / "a", ROWS)
    masks = exchange.views_store(tmp_path / "b")
    with pytest.raises(InputError, match=words):
        exchange.draw_masks(masks, ROWS, lambda row: change(exchange.mask_meta(row)))
        export_pooled(tokens, tmp_path / "bags", masks=masks)
    assert not (tmp_path / "bags").exists() and not list(tmp_path.glob("*.partial"))


def test_corrected_masks_do_not_matter_but_moved_tiles_do(tmp_path: Path) -> None:
    tokens, masks = exchange.caches(tmp_path, ROWS)
    exchange.draw_masks(masks, ROWS, salt="corrected")
    assert export_pooled(tokens, tmp_path / "bags", masks=masks).views == 7

    def elsewhere(row: ViewRow) -> dict[str, Any]:
        meta = exchange.mask_meta(row)
        return {**meta, "tile": {**meta["tile"], "centre": [700.0, 700.0]}}

    exchange.draw_masks(masks, ROWS[:1], elsewhere, salt="elsewhere")
    with pytest.raises(InputError, match="train_0, view 0 lies in several places"):
        export_pooled(tokens, tmp_path / "more bags", masks=masks)
    chosen = {row.key: exchange.mask_row(row).key for row in ROWS}
    assert export_pooled(tokens, tmp_path / "more bags", masks=masks, views=chosen).views == 7


def test_what_cannot_be_pooled_leaves_no_folder(tmp_path: Path) -> None:
    tokens, masks = exchange.caches(tmp_path / "a", ROWS)
    folder = tmp_path / "bags"
    with pytest.raises(InputError, match="Only token grids"):
        export_pooled(masks, folder, masks=masks)
    few = exchange.views_store(tmp_path / "few")
    exchange.draw_masks(few, ROWS[:5])
    with pytest.raises(InputError, match=r"2 of 7 views are not in the views store: tile train_5, view 0"):
        export_pooled(tokens, folder, masks=few)
    with pytest.raises(MissingViews, match="000000000000, view 0"):
        export_pooled(tokens, folder, masks=masks, views={kit.ViewKey("0" * 64, 0): ROWS[0].key})
    drawn = GridStore.at(tmp_path, "pixels", {"a": 1}, kit.TOKENS, {}, create=True)
    kit.fill(drawn, kit.rows_of(3, 1, first_view=1))
    with pytest.raises(InputError, match="no unaugmented view"):
        export_pooled(drawn, folder, masks=masks)
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(InputError, match="never replaces"):
        export_pooled(tokens, folder, masks=masks)
    assert [path.name for path in folder.iterdir()] == ["mine"]
    (folder / "mine").unlink()
    assert export_pooled(tokens, folder, masks=masks).views == 7
    kit.shard_files(tokens)[0].write_bytes(b"")
    with pytest.raises(DamagedGrid, match="train_0, view 0"):
        export_pooled(tokens, tmp_path / "other", masks=masks)
    assert not (tmp_path / "other").exists()


def test_killed_pooling_leaves_no_folder_and_is_repeated(memory_path: Path) -> None:
    tokens, masks = exchange.caches(memory_path / "here", ROWS)
    folder = memory_path / "bags"
    step = 3
    while exchange.killed_at(step, lambda: export_pooled(tokens, folder, masks=masks)):
        if folder.exists():  # killed after its last change but one
            assert len(list(folder.iterdir())) == 2
            folder.rename(memory_path / "early")
        step += 3
    assert step > 20
    assert len(read_bag(folder / "slide 0.h5")[0]) == 4
    export_pooled(tokens, memory_path / "again", masks=masks)
    assert not list(memory_path.glob("*.partial"))


def test_a_full_disk_leaves_nothing_of_the_folder(small_disk: Callable[[str], Path], tmp_path: Path) -> None:
    wide = GridSpec("tokens", (20_000, 2, 2), "float16", ("d", "h", "w"))
    tokens = GridStore.at(tmp_path, "pixels", kit.IDENTITY, wide, {}, create=True)
    kit.fill(tokens, ROWS)
    masks = exchange.views_store(tmp_path)
    exchange.draw_masks(masks, ROWS)
    disk = small_disk("size=300k")
    with pytest.raises(StorageError, match=r"disk is full.*another folder"):
        export_pooled(tokens, disk / "bags", masks=masks)
    assert list(disk.iterdir()) == []
    small_disk("size=2m")
    assert export_pooled(tokens, disk / "bags", masks=masks).views == 7
