"""A square of a slide has the pixels that a tile of a study has; thumbnails are area means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from slide_kit import write_slide

from stages.slides.image_source import ArraySource
from stages.slides.opening import open_slide
from stages.slides.scaled import ScaledSlide
from stages.tiles.dataset import ImageRecord
from stages.tiles.tiling import Tile
from stages.tiles.views import Draw, render
from store.errors import InputError


def image(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 256, (height, width, 3)).astype(np.uint8)


def slide(pixels: NDArray[np.uint8], step: float) -> ScaledSlide:
    return ScaledSlide(ArraySource(Path("a"), pixels, {}), step)


@pytest.mark.parametrize("step", [1.0, 2.0, 1.5, 0.75])
def test_the_middle_square_of_an_image_is_the_tile_of_a_study(step: float) -> None:
    pixels = image(round(48 * step), round(48 * step))
    seen = slide(pixels, step)
    assert (seen.height, seen.width) == (48, 48)
    middle = (pixels.shape[0] / 2, pixels.shape[1] / 2)
    tile = Tile("t", ImageRecord("t", None, None), middle, step, 48, "", "")
    np.testing.assert_array_equal(seen.square(0, 0, 48), render(pixels, None, tile, Draw())[0])


def test_beyond_the_slide_it_goes_on_by_reflection_also_for_squares_that_lie_off_it() -> None:
    pixels = image(20, 30)
    seen = slide(pixels, 1.0)
    mirrored = np.pad(pixels, ((20, 20), (30, 30), (0, 0)), mode="symmetric")
    for top, left in ((-8, -5), (15, 25), (-16, 28), (-20, -30)):
        np.testing.assert_array_equal(
            seen.square(top, left, 12), mirrored[20 + top : 32 + top, 30 + left : 42 + left]
        )


def test_pieces_fit_together_as_the_whole() -> None:
    seen = slide(image(96, 96), 2.0)
    whole = seen.square(0, 0, 48)
    for top in (0, 16, 32):
        for left in (0, 16, 32):
            np.testing.assert_array_equal(seen.square(top, left, 16), whole[top : top + 16, left : left + 16])


def test_the_coarsest_level_that_is_as_fine_is_read(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", (1024, 1024), [(500.0, 500.0, 300.0)], compression="deflate")
    source = open_slide(path)
    chosen = {step: ScaledSlide(source, step).level for step in (0.5, 1.0, 3.9, 4.0, 15.0, 16.0, 40.0)}
    assert chosen == {0.5: 0, 1.0: 0, 3.9: 0, 4.0: 1, 15.0: 1, 16.0: 2, 40.0: 2}
    from_level = ScaledSlide(source, 4.0).square(20, 20, 100)
    np.testing.assert_array_equal(from_level, source.read(1, 20, 20, 100, 100))


@pytest.mark.parametrize("step", [0.0, 0.03, 65.0, float("inf"), float("nan")])
def test_pixels_that_no_map_of_the_slide_has_are_refused(step: float) -> None:
    with pytest.raises(InputError, match="would span") as caught:
        slide(image(64, 48), step)
    assert caught.value.remedy
    assert slide(image(64, 48), 64.0).height == 1


@pytest.mark.parametrize(
    ("size", "step", "factor"), [((64, 48), 1.0, 4), ((65, 47), 1.0, 4), ((64, 48), 2.0, 3)]
)
def test_a_thumbnail_is_the_mean_over_areas(size: tuple[int, int], step: float, factor: int) -> None:
    pixels = image(*size)
    seen = slide(pixels, step)
    small = seen.thumbnail(factor)
    span = round(step * factor)
    assert small.shape[:2] == (-(-seen.height // factor), -(-seen.width // factor))
    rows, columns = size[0] // span, size[1] // span
    blocks = pixels[: rows * span, : columns * span].reshape(rows, span, columns, span, 3)
    np.testing.assert_allclose(small[:rows, :columns].astype(float), blocks.mean((1, 3)), atol=1.01)


def test_a_thumbnail_does_not_depend_on_the_strips_it_is_read_in(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = slide(image(90, 70), 1.0)
    whole = seen.thumbnail(3)
    monkeypatch.setattr("stages.slides.scaled._STRIP_PIXELS", 70 * 10)
    np.testing.assert_array_equal(seen.thumbnail(3), whole)


def test_the_label_of_a_map_pixel_is_the_one_under_its_centre() -> None:
    mask = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8)
    np.testing.assert_array_equal(slide(image(6, 8), 2.0).nearest(mask), mask[1::2, 1::2])
    np.testing.assert_array_equal(slide(image(6, 8), 1.0).nearest(mask), mask)
