from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.tiles.dataset import ImageRecord, Listing
from stages.tiles.demo import DemoDataset
from stages.tiles.folder import FolderDataset
from stages.tiles.tiling import Tile, centres, tiles_of
from store.errors import InputError, InputErrors


class Arrays:
    """A data set of arrays in memory that counts how many images are alive at once."""

    name = "arrays"
    classes = ("A", "B")

    def __init__(self, *images: np.ndarray, slow: float = 0.0) -> None:
        self.images = {f"i{n}": image for n, image in enumerate(images)}
        self.masks = {id: (image[..., 0] > 127).astype(np.uint8) for id, image in self.images.items()}
        self.slow, self.busy, self.most, self.lock = slow, 0, 0, threading.Lock()

    def listing(self) -> Listing:
        return Listing(tuple(ImageRecord(id, None, None) for id in self.images), ())

    def records(self) -> tuple[ImageRecord, ...]:
        return self.listing().records

    def read_image(self, record: ImageRecord) -> np.ndarray:
        with self.lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
        time.sleep(self.slow)
        with self.lock:
            self.busy -= 1
        return self.images[record.id].copy()

    def read_mask(self, record: ImageRecord) -> np.ndarray:
        return self.masks[record.id]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tiles(
    dataset, *, px: int = 16, step: float = 1.0, tiling: str = "center", threads: int = 2
) -> list[Tile]:
    return tiles_of(dataset, dataset.records(), px=px, step_of=lambda _: step, tiling=tiling, threads=threads)


def test_a_centred_tile_lies_in_the_middle_of_its_image() -> None:
    (tile,) = tiles(Arrays(noise(40, 61)), px=16, step=2.0)
    assert (tile.name, tile.centre, tile.step, tile.px) == ("i0", (20.0, 30.5), 2.0, 16)
    assert len(tile.key) == len(tile.mask_key) == 64


@pytest.mark.parametrize(
    ("height", "width", "px", "step", "rows", "columns"),
    [
        (64, 64, 16, 1.0, 4, 4),
        (64, 64, 16, 2.0, 2, 2),
        (65, 64, 16, 1.0, 5, 4),
        (10, 12, 16, 1.0, 1, 1),
        (64, 48, 16, 0.5, 8, 6),
        (1024, 1024, 512, 0.46 / 0.23, 1, 1),  # 0.46 / 0.23 is not quite 2
        (1024, 1024, 512, 2.0000001, 1, 1),
        (1025, 1024, 512, 2.0, 1, 1),  # half a tile pixel more holds no centre of one
        (1026, 1024, 512, 2.0, 2, 1),
    ],
)
def test_a_grid_covers_the_image_and_no_tile_is_all_rim(height, width, px, step, rows, columns) -> None:
    found = list(centres(height, width, px=px, step=step, tiling="grid"))
    assert len(found) == rows * columns
    assert [suffix for suffix, _, _ in found] == [f"@r{r}c{c}" for r in range(rows) for c in range(columns)]
    half = px * step / 2
    covered = np.zeros((height, width), int)
    rows_, columns_ = np.arange(height) + 0.5, np.arange(width) + 0.5
    for _, y, x in found:
        inside = np.outer(np.abs(rows_ - y) < half, np.abs(columns_ - x) < half)
        assert inside.any()
        covered += inside
    assert (covered[: int(rows * px * step), : int(columns * px * step)] == 1).all()


def test_grid_tiles_are_named_by_row_and_column() -> None:
    found = tiles(Arrays(noise(32, 48)), tiling="grid")
    assert [tile.name for tile in found] == ["i0@r0c0", "i0@r0c1", "i0@r0c2", "i0@r1c0", "i0@r1c1", "i0@r1c2"]
    assert len({tile.key for tile in found}) == 6
    assert found[5].centre == (24.0, 40.0)


def test_the_key_follows_pixels_and_geometry_and_the_mask_key_the_mask_too() -> None:
    base = Arrays(noise(32, 32))
    (tile,) = tiles(base)
    changed = noise(32, 32)
    changed[0, 0, 0] ^= 1
    others = [
        tiles(Arrays(changed))[0],
        tiles(base, step=1.5)[0],
        tiles(base, px=8)[0],
        tiles(base, px=16, tiling="grid")[0],
    ]
    assert len({tile.key, *(other.key for other in others)}) == 5
    other_mask = Arrays(noise(32, 32))
    other_mask.masks["i0"][3, 3] = 255
    (relabelled,) = tiles(other_mask)
    assert relabelled.key == tile.key
    assert relabelled.mask_key != tile.mask_key


def test_a_tile_keeps_its_keys_wherever_its_files_are_and_however_they_are_compressed(tmp_path: Path) -> None:
    keys = []
    for name, level in (("here", 1), ("there", 9)):
        for folder in ("images", "masks"):
            (tmp_path / name / folder).mkdir(parents=True)
        Image.fromarray(noise(20, 20)).save(tmp_path / name / "images/a.png", compress_level=level)
        Image.fromarray(np.eye(20, dtype=np.uint8)).save(
            tmp_path / name / "masks/a.png", compress_level=level
        )
        (tile,) = tiles(FolderDataset(tmp_path / name, {"A": [0], "B": [1]}))
        keys.append((tile.key, tile.mask_key))
    assert keys[0] == keys[1]


def test_tiles_come_in_the_order_of_the_records_whatever_the_threads() -> None:
    dataset = DemoDataset(images=6, size_px=64)
    alone = tiles(dataset, px=32, tiling="grid", threads=1)
    together = tiles(dataset, px=32, tiling="grid", threads=4)
    assert alone == together
    assert [tile.record.id for tile in alone[::4]] == [record.id for record in dataset.records()]


def test_no_more_images_than_threads_are_in_memory() -> None:
    dataset = Arrays(*(noise(8, 8, seed) for seed in range(12)), slow=0.01)
    tiles(dataset, threads=3)
    assert 1 < dataset.most <= 3


def test_two_images_with_the_same_pixels_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="images i0 and i2 have the same pixels"):
        tiles(Arrays(noise(16, 16), noise(16, 16, 1), noise(16, 16)))


def test_every_image_that_cannot_be_used_is_told_at_once(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for n, id in enumerate("abc"):
        Image.fromarray(noise(16, 16, n)).save(tmp_path / f"images/{id}.png")
        Image.fromarray(np.full((16, 16), n, np.uint8)).save(tmp_path / f"masks/{id}.png")
    (tmp_path / "images/a.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputErrors) as caught:
        tiles(FolderDataset(tmp_path, {"A": [0], "B": [1]}))
    assert [Path(str(fault.where)).name for fault in caught.value.faults] == ["a.png", "c.png"]


def test_a_resolution_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="cannot span 0"):
        tiles(Arrays(noise(16, 16)), step=0.0)


def test_the_step_may_differ_by_image() -> None:
    dataset = Arrays(noise(32, 32), noise(32, 32, 1))
    records = [replace(record, mpp=mpp) for record, mpp in zip(dataset.records(), (0.25, 0.5), strict=True)]
    found = tiles_of(dataset, records, px=8, step_of=lambda r: 0.5 / float(r.mpp or 0), tiling="center")
    assert [tile.step for tile in found] == [2.0, 1.0]


def test_real_regions_of_tissue_get_distinct_keys(shared: Path) -> None:
    dataset = FolderDataset(shared / "data/he_glas", {"S": [0], "B": [1], "M": [2]}, table="meta.csv")
    records = dataset.records()[:8]
    found = tiles_of(dataset, records, px=224, step_of=lambda _: 2.0, tiling="center")
    assert len({tile.key for tile in found}) == 8
    assert [tile.record.id for tile in found] == [record.id for record in records]
