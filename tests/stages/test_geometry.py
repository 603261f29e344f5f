"""Everything between an image and its Dice keeps its place: tiles, views, token grids, decoder, masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stages.batching import Batches
from stages.decoders import Geometry
from stages.encoders import TokenGrid
from stages.encoders.inputs import fitted, run_px
from stages.extract import extract, write_views
from stages.metrics import mean_dice
from stages.tiles.folder import FolderDataset
from stages.tiles.plan import ViewSource, mask_spec, masks_identity, planned_views
from stages.tiles.tiling import tiles_of
from stages.tiles.views import Recipe
from stages.training.data import ResidentFeatures, SplitData
from stages.training.run import train_run
from stages.training.settings import TrainSettings
from store import GridSpec, GridStore

COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]], np.uint8)
BLOCK = 4  # tokens a class block is wide
BLOCKS = 3


class MeanColour:
    """An encoder whose token is its patch's mean colour."""

    name = "mean-colour"
    parameters = 0
    provenance: Mapping[str, Any] = {}

    def __init__(self, patch: int, tile_px: int) -> None:
        self.patch, self.px = patch, run_px(tile_px, patch)
        self.grid = TokenGrid(3, self.px // patch, self.px // patch)
        self.identity: Mapping[str, Any] = {"encoder": self.name, "patch": patch, "tile_px": tile_px}

    def encode(self, views: torch.Tensor) -> torch.Tensor:
        images = fitted(views, self.px, "resize") * 2 - 1
        return torch.nn.functional.avg_pool2d(images, self.patch)


def block_images(root: Path, side: int, number: int) -> None:
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rng = np.random.default_rng(0)
    for index in range(number):
        blocks = rng.permutation(np.arange(BLOCKS * BLOCKS) % 3).reshape(BLOCKS, BLOCKS)
        # the image is larger than the tile by a block all round, at twice the tile's resolution
        mask = np.pad(blocks, 1, mode="wrap").repeat(2 * side, 0).repeat(2 * side, 1).astype(np.uint8)
        Image.fromarray(COLOURS[mask]).save(root / f"images/{index}.png")
        Image.fromarray(mask).save(root / f"masks/{index}.png")


@pytest.mark.parametrize("patch", [8, 14, 16])
def test_a_mean_colour_encoder_segments_blocks_that_lie_on_the_grid(patch: int, tmp_path: Path) -> None:
    side = BLOCK * patch
    px = BLOCKS * side
    block_images(tmp_path / "data", side, 12)
    dataset = FolderDataset(tmp_path / "data", {"Red": [0], "Green": [1], "Blue": [2]})
    tiles = tiles_of(dataset, dataset.records(), px=px, step_of=lambda record: 2.0, tiling="center")
    encoder, recipe = MeanColour(patch, px), Recipe()
    views = planned_views(tiles, [], 1)
    source = ViewSource(dataset, recipe)
    masks = GridStore.at(
        tmp_path, "views", masks_identity(recipe, dataset.classes, px), mask_spec(px), {}, create=True
    )
    write_views(views, source, masks, threads=2)
    grid = encoder.grid
    spec = GridSpec("tokens", (grid.d, grid.h, grid.w), "float16", ("d", "h", "w"))
    tokens = GridStore.at(tmp_path, "mean-colour", dict(encoder.identity), spec, {}, create=True)
    done = extract(views, source, masks.reader(), Batches(encoder, 4), tokens, threads=2)
    assert (done.computed, done.kept) == (12, 0)

    features = ResidentFeatures.read(
        tokens.reader(),
        [v.key for v in views],
        spec,
        torch.device("cpu"),
    )
    truth = masks.reader().read_many([v.mask_key for v in views])
    rows = np.arange(12)[:, None]
    part = {
        name: SplitData(features, rows[at], truth, rows[at], tuple(str(i) for i in range(12))[at])
        for name, at in (("train", slice(0, 8)), ("val", slice(8, 10)), ("test", slice(10, 12)))
    }
    settings = TrainSettings(
        options={"width": 24}, epochs=30, validate_every=15, restart_epochs=30, batch=2, lr=5e-3
    )
    result = train_run(
        settings,
        0,
        part["train"],
        part["val"],
        part["test"],
        encoder=encoder.name,
        classes=dataset.classes,
        geometry=Geometry(grid.d, (grid.h, grid.w), px, px, 3),
        device=torch.device("cpu"),
    )
    assert mean_dice(result.best_counts("test")) >= 0.99


def test_a_patch_size_that_does_not_divide_the_tile_keeps_its_place(tmp_path: Path) -> None:
    """Resized to fit, every token still spans its share of the tile: a colour ramp is read off linearly."""
    px, patch = 100, 14
    encoder = MeanColour(patch, px)
    ramp = torch.linspace(0, 255, px).round().to(torch.uint8).expand(1, 3, px, px)
    tokens = (encoder.encode(ramp.contiguous())[0, 0] + 1) / 2
    centres = (torch.arange(encoder.grid.w) + 0.5) / encoder.grid.w
    torch.testing.assert_close(tokens[3], centres, atol=0.01, rtol=0)
