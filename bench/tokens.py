"""Token grids to measure with: of a real encoder where its weights are at hand, else numbers that compress alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.harness import Setting
from store import GridSpec, GridStore, ViewRow

SPEC = GridSpec("tokens", (1536, 37, 37), "float16", ("d", "h", "w"))  # 4.2 MB a view, as of uni2-h
SMALL_SPEC = GridSpec("tokens", (24, 9, 9), "float16", ("d", "h", "w"))
ENCODER = "dinov2-s14@12"
VIEWS, SMALL_VIEWS = 64, 20
_CROPS, _CROP_PX = 12, 512


class Grids(NamedTuple):
    """Grids (N, d, h, w) float16, their form, and a word on what they are."""

    values: NDArray[np.float16]
    spec: GridSpec
    what: str


def grids(setting: Setting) -> Grids:
    """Return the grids every benchmark of the store uses; made once, kept in the folder of ``setting``."""
    if setting.small:
        return Grids(
            np.stack([_smooth(seed, SMALL_SPEC) for seed in range(SMALL_VIEWS)]), SMALL_SPEC, "synthetic"
        )
    data = Path(os.environ.get("FROSTGRID_TEST_DATA", Path(__file__).parents[2] / "shared"))
    weights, images = data / "weights" / "dinov2-s14", sorted((data / "data").rglob("*_roi_*.tif"))
    real = (weights / "model.safetensors").is_file() and bool(images)
    what = f"tokens of {ENCODER} on H&E, four views side by side" if real else "synthetic"
    file = setting.folder / ("tokens.npy" if real else "synthetic.npy")
    if not file.is_file():
        values = _encoded(weights, images[0]) if real else np.stack([_smooth(n, SPEC) for n in range(VIEWS)])
        np.save(file, values)
    return Grids(np.load(file), SPEC, what)


def write_cache(folder: Path, made: Grids, shard_views: int | None = None) -> GridStore:
    """Write a cache of ``made`` in the default form under ``folder``; view n is of the tile with the key n."""
    identity = {"benchmark": "store", "what": made.what}
    store = GridStore.at(folder, "bench", identity, made.spec, {}, create=True)
    for task in store.plan(rows(len(made.values)), shard_views=shard_views):
        store.write(task, ((made.values[int(row.tile, 16)], None) for row in task.rows))
    return store


def rows(views: int) -> list[ViewRow]:
    """Return the table of ``views`` tiles of one view each."""
    return [ViewRow(f"{number:064x}", 0, f"tile_{number}", "") for number in range(views)]


def _encoded(weights: Path, image: Path) -> NDArray[np.float16]:
    """Tokens of crops of one image, four encodings of 384 channels making one of 1536."""
    import torch  # takes seconds, and only this needs it

    from stages.encoders import load_encoder
    from stages.tiles.images import read_image

    pixels = read_image(image)
    rng = np.random.default_rng(0)
    crops = []
    for number in range(_CROPS):
        y, x = (int(rng.integers(0, side - _CROP_PX + 1)) for side in pixels.shape[:2])
        crop = np.rot90(pixels[y : y + _CROP_PX, x : x + _CROP_PX], number % 4)
        crops.append(np.ascontiguousarray(crop[:, ::-1] if number % 8 > 3 else crop))
    encoder = load_encoder(ENCODER, tile_px=_CROP_PX, weights=weights)
    views = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    quarters = np.concatenate([encoder.encode(views[n : n + 2]).numpy() for n in range(0, _CROPS, 2)])
    picked = [rng.permutation(_CROPS)[:4] for _ in range(VIEWS)]
    return np.stack([np.concatenate(quarters[four]) for four in picked]).astype(np.float16)


def _smooth(seed: int, spec: GridSpec) -> NDArray[np.float16]:
    """Grids with the mean and smoothness of tokens: a level a channel, slow changes over the view, a little noise."""
    rng = np.random.default_rng(seed)
    channels, height, width = spec.shape
    coarse = rng.standard_normal((channels, 4, 4), dtype=np.float32)
    smooth = _spread(height) @ coarse @ _spread(width).T
    level = 3 * rng.standard_normal((channels, 1, 1), dtype=np.float32)
    values = level + smooth + 0.1 * rng.standard_normal(spec.shape, dtype=np.float32)
    return np.asarray(values, dtype=np.float16)


def _spread(side: int) -> NDArray[np.float32]:
    """Weights (side, 4) that interpolate four values to ``side`` ones, linearly."""
    at = np.linspace(0, 3, side, dtype=np.float32)
    weights: NDArray[np.float32] = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(4, dtype=np.float32)))
    return weights
