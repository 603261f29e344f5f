from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.tiles.dataset import IGNORE, ImageRecord
from stages.tiles.tiling import Tile
from stages.tiles.views import Draw, Recipe, draw, render, view_sha256

COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)


def tile_in(size: tuple[int, int], px: int, step: float, centre: tuple[float, float] | None = None) -> Tile:
    return Tile(
        name="t",
        record=ImageRecord("t", None, None),
        centre=centre or (size[0] / 2, size[1] / 2),
        step=step,
        px=px,
        key="0" * 64,
        mask_key="1" * 64,
    )


def blobs(size: int, period: float, seed: int = 0) -> np.ndarray:
    """A smooth map of three classes."""
    y, x = np.mgrid[:size, :size] / period
    phase = np.random.default_rng(seed).uniform(0, 6, 4)
    field = np.sin(x + phase[0]) + np.sin(y + phase[1]) + np.sin(x + y + phase[2])
    return np.digitize(field, (-0.7, 0.7)).astype(np.uint8)


def test_view_zero_at_half_scale_is_the_mean_of_two_by_two_source_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    pixels, _ = render(image, None, tile_in((64, 96), 32, 2.0, (32.0, 40.0)), Draw())
    block = image[:, 8:72].reshape(32, 2, 32, 2, 3).astype(int).sum((1, 3))
    np.testing.assert_array_equal(pixels, (block + 2) // 4)


def test_view_zero_at_full_scale_is_the_source_itself() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    mask = np.random.default_rng(1).integers(0, 3, (40, 50), dtype=np.uint8)
    pixels, classes = render(image, mask, tile_in((40, 50), 32, 1.0, (20.0, 25.0)), Draw())
    np.testing.assert_array_equal(pixels, image[4:36, 9:41])
    np.testing.assert_array_equal(classes, mask[4:36, 9:41])


@settings(deadline=None, max_examples=60)
@given(
    view=st.integers(1, 10_000),
    step=st.floats(0.5, 4.0),
    seed=st.integers(0, 2**32),
)
def test_image_and_mask_of_every_view_register(view: int, step: float, seed: int) -> None:
    """The mask is a function of the colours, so it can be read off the view's pixels away from class edges."""
    mask = blobs(240, period=24)
    tile = tile_in(mask.shape, 48, step)
    how = replace(draw(Recipe(seed=seed), tile.key, view), brightness=1, contrast=1, saturation=1, hue=0)
    pixels, classes = render(COLOURS[mask], mask, tile, how)
    assert classes is not None
    distance = np.abs(pixels[:, :, None, :].astype(int) - COLOURS).sum(-1)
    pure = distance.min(-1) == 0
    known = pure & (classes != IGNORE)
    assert known.mean() > 0.15
    np.testing.assert_array_equal(distance.argmin(-1)[known], classes[known])


def test_a_class_edge_is_in_the_same_place_in_image_and_mask_for_every_view() -> None:
    mask = np.zeros((200, 200), np.uint8)
    mask[:, 100:] = 1
    image = np.where(mask[..., None] == 1, 255, 0).astype(np.uint8).repeat(3, -1)
    tile = tile_in(mask.shape, 64, 1.0)
    for view in range(1, 30):
        how = replace(draw(Recipe(), tile.key, view), brightness=1, contrast=1, saturation=1, hue=0)
        pixels, classes = render(image, mask, tile, how)
        assert classes is not None
        inside = classes != IGNORE
        wrong = ((pixels[..., 0] > 127) != (classes == 1)) & inside
        assert wrong.mean() < 0.012, view  # at most a sliver of the edge itself


def test_pixels_outside_the_image_are_ignored_in_the_mask_and_reflected_in_the_view() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    mask = np.ones((20, 20), np.uint8)
    pixels, classes = render(image, mask, tile_in((20, 20), 32, 1.0), Draw())
    assert classes is not None
    assert (classes[6:26, 6:26] == 1).all()
    assert (classes == IGNORE).sum() == 32 * 32 - 20 * 20
    np.testing.assert_array_equal(pixels, np.pad(image, ((6, 6), (6, 6), (0, 0)), mode="symmetric"))


def test_a_rotated_view_of_a_centred_tile_has_real_pixels_in_its_corners() -> None:
    mask = np.zeros((200, 200), np.uint8)
    _, classes = render(COLOURS[mask], mask, tile_in((200, 200), 64, 1.0), Draw(angle=45.0))
    assert classes is not None
    assert (classes == 0).all()


def test_a_view_depends_on_seed_tile_and_index_alone() -> None:
    recipe = Recipe(seed=3)
    assert draw(recipe, "a" * 64, 5) == draw(recipe, "a" * 64, 5)
    others = [draw(recipe, "a" * 64, 6), draw(recipe, "b" * 64, 5), draw(Recipe(seed=4), "a" * 64, 5)]
    assert draw(recipe, "a" * 64, 5) not in others
    assert draw(recipe, "a" * 64, 0) == Draw()


def test_draws_fill_the_ranges_of_the_recipe_and_stay_inside() -> None:
    recipe = Recipe(degrees=90, translate=0.2, scale=(0.5, 2.0), shear=5, brightness=0.3, hue=0.1)
    drawn = [draw(recipe, "a" * 64, view) for view in range(1, 2001)]
    for values, low, high in (
        ([d.angle for d in drawn], -90, 90),
        ([d.shift[0] for d in drawn], -0.2, 0.2),
        ([d.zoom for d in drawn], 0.5, 2.0),
        ([d.shear for d in drawn], -5, 5),
        ([d.brightness for d in drawn], 0.7, 1.3),
        ([d.hue for d in drawn], -0.1, 0.1),
    ):
        assert low <= min(values) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < max(values) <= high
    assert 0.45 < np.mean([d.mirror[0] for d in drawn]) < 0.55
    still = draw(replace(recipe, flip=False), "a" * 64, 7)
    assert still.mirror == (False, False)


def test_jitter_agrees_with_torchvision_but_for_rounding_and_clipping() -> None:
    import torch
    from torchvision.transforms.v2 import functional

    image = np.random.default_rng(0).integers(70, 170, (32, 32, 3), dtype=np.uint8)
    tile = tile_in((32, 32), 32, 1.0)
    ours, _ = render(image, None, tile, Draw(brightness=1.1, contrast=0.9, saturation=1.15))
    theirs = torch.from_numpy(image).permute(2, 0, 1).to(torch.float64) / 255
    theirs = functional.adjust_brightness(theirs, 1.1)
    theirs = functional.adjust_contrast(theirs, 0.9)
    theirs = functional.adjust_saturation(theirs, 1.15)
    difference = ours.astype(float) - (theirs.permute(1, 2, 0) * 255).numpy()
    assert np.abs(difference).max() < 1.0


def test_hue_keeps_grey_and_luma() -> None:
    tile = tile_in((8, 8), 8, 1.0)
    grey = np.full((8, 8, 3), 120, np.uint8)
    np.testing.assert_array_equal(render(grey, None, tile, Draw(hue=0.05))[0], grey)
    pink = np.full((8, 8, 3), (200, 120, 160), np.uint8)
    turned = render(pink, None, tile, Draw(hue=0.05))[0]
    assert not np.array_equal(turned, pink)
    luma = np.array([0.299, 0.587, 0.114])
    assert abs(float(turned[0, 0] @ luma) - float(pink[0, 0] @ luma)) < 1.0


HASHES = """
import sys; import numpy as np, hashlib
from stages.tiles.dataset import ImageRecord
from stages.tiles.tiling import Tile
from stages.tiles.views import Recipe, draw, render, view_sha256
image = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
tile = Tile("t", ImageRecord("t", None, None), (80.0, 80.0), 1.7, 64, "0" * 64, "1" * 64)
print([view_sha256(render(image, None, tile, draw(Recipe(), tile.key, v))[0])[:16] for v in range(6)])
"""


@pytest.mark.parametrize("features", ["AVX2", "AVX512F"])
def test_views_are_the_same_bits_on_processors_with_other_vector_units(features: str) -> None:
    def run(**extra: str) -> str:
        environment = {**os.environ, **extra}
        return subprocess.run(
            [sys.executable, "-c", HASHES], env=environment, check=True, capture_output=True, text=True
        ).stdout

    plain = run()
    # numpy leaves a vector unit alone that is named here; torch takes its code for the oldest x86-64
    assert (
        run(NPY_DISABLE_CPU_FEATURES=features, ATEN_CPU_CAPABILITY="default", OPENBLAS_CORETYPE="Nehalem")
        == plain
    )


def test_the_pixels_of_a_drawn_view_never_change_between_versions() -> None:
    """A cache made by an earlier version stays valid: change REVISION together with this value."""
    y, x = np.mgrid[:96, :96]
    image = np.stack([(3 * x + y) % 256, (x * y) % 256, (5 * y) % 256], -1).astype(np.uint8)
    pixels, _ = render(image, None, tile_in((96, 96), 32, 1.5), draw(Recipe(), "ab" * 32, 3))
    assert view_sha256(pixels)[:16] == "95fca0a6d56ef2a1"
