"""A map is written as files that other programs read; tissue is told from glass."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from slide_kit import GLASS, PINK, PURPLE

from stages.slides.areas import areas_of, counted, to_csv
from stages.slides.bands import BandFolder
from stages.slides.mapping import BAND_ROWS, Band
from stages.slides.ometiff import halved, write_label_map
from stages.slides.picture import overlay, picture
from stages.slides.probabilities import write_probabilities
from stages.slides.tissue import Tissue, find_tissue, otsu
from stages.tiles.dataset import IGNORE
from store.errors import VerificationError

CLASSES = ["Tumour", "Strøma"]
COLOURS = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)


def labels(height: int, width: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(height).choice([0, 1, IGNORE], (height // 50 + 1, width // 50 + 1))
    return coarse.repeat(50, 0).repeat(50, 1)[:height, :width].astype(np.uint8)


def write(path: Path, wanted: NDArray[np.uint8], rows: int = 256) -> Path:
    strips = (wanted[top : top + rows] for top in range(0, len(wanted), rows))
    write_label_map(
        path, strips, wanted.shape, mpp=1.25, classes=CLASSES, colours=COLOURS, name="a slide", key="ab" * 32
    )
    return path


def test_a_label_map_is_read_back_by_tifffile_with_its_levels_mpp_and_names(tmp_path: Path) -> None:
    wanted = labels(2301, 1500)
    path = write(tmp_path / "a.ome.tif", wanted)
    with tifffile.TiffFile(path) as tiff:
        (series,) = tiff.series
        assert tiff.is_ome and series.kind == "ome"
        assert [level.shape for level in series.levels] == [(2301, 1500), (1151, 750), (576, 375)]
        expected = wanted
        for level in series.levels:
            np.testing.assert_array_equal(level.asarray(), expected)
            expected = halved(expected)
        page = tiff.pages.first
        assert page.is_tiled and page.photometric == tifffile.PHOTOMETRIC.PALETTE
        np.testing.assert_array_equal(page.colormap[:, 1] // 257, COLOURS[1])
        description = str(tiff.ome_metadata)
    assert 'PhysicalSizeX="1.25"' in description and 'PhysicalSizeYUnit="µm"' in description
    assert '<M K="1">Strøma</M>' in description


def test_a_label_map_is_read_back_by_openslide_with_its_levels_mpp_and_colours(tmp_path: Path) -> None:
    wanted = labels(2301, 1500)
    slide = openslide.OpenSlide(write(tmp_path / "a.ome.tif", wanted))
    assert slide.level_dimensions == ((1500, 2301), (750, 1151), (375, 576))
    assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(1.25)
    region = np.asarray(slide.read_region((700, 1100), 0, (400, 300)))[..., :3]
    np.testing.assert_array_equal(region, COLOURS[wanted[1100:1400, 700:1100]])
    small = np.asarray(slide.read_region((0, 0), 1, (750, 1150)))[..., :3]
    np.testing.assert_array_equal(small, COLOURS[halved(wanted)[:1150]])


def test_the_same_map_is_the_same_bytes_whatever_its_strips(tmp_path: Path) -> None:
    wanted = labels(1300, 700)
    first = write(tmp_path / "a.ome.tif", wanted, rows=256).read_bytes()
    assert write(tmp_path / "b.ome.tif", wanted, rows=77).read_bytes() == first
    assert not list(tmp_path.glob("*level*"))


def test_a_map_of_one_level_is_written_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ome.tif", labels(100, 33))
    assert tifffile.imread(path).shape == (100, 33)
    assert openslide.OpenSlide(path).dimensions == (33, 100)


@given(
    arrays(
        np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, 255])
    )
)
def test_a_level_has_the_most_frequent_class_of_four_pixels(wanted: NDArray[np.uint8]) -> None:
    small = halved(wanted)
    padded = np.pad(wanted, [(0, side % 2) for side in wanted.shape], mode="edge")
    for y, x in np.ndindex(small.shape):
        counts = Counter(padded[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel().tolist())
        most = max(counts.values())
        assert small[y, x] == min(label for label, count in counts.items() if count == most)


def band(top: int, rows: int, width: int) -> Band:
    wanted = labels(rows, width)
    shares = np.random.default_rng(top).random((2, rows, width)).astype(np.float16)
    return Band(top, wanted, shares)


def test_bands_come_back_and_count_from_the_first_without_a_gap(tmp_path: Path) -> None:
    folder = BandFolder(tmp_path, 2 * BAND_ROWS + 10, 30)
    bands = [band(number * BAND_ROWS, rows, 30) for number, rows in enumerate((BAND_ROWS, BAND_ROWS, 10))]
    folder.put(bands[0])
    folder.put(bands[2])
    assert folder.finished() == 1
    folder.put(bands[1])
    assert folder.finished() == folder.count == 3
    whole = np.concatenate([one.labels for one in bands])
    np.testing.assert_array_equal(np.concatenate(list(folder.labels())), whole)
    np.testing.assert_array_equal(folder.sampled(7)[:-1, :-1], whole[3::7, 3::7][:74, :4])
    folder.clear()
    assert folder.finished() == 0


def test_a_damaged_band_is_an_error_and_no_labels(tmp_path: Path) -> None:
    folder = BandFolder(tmp_path, 10, 30)
    folder.put(band(0, 10, 30))
    (path,) = tmp_path.glob("band-*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(VerificationError, match="cannot be read"):
        folder.band(0)


def test_whichever_byte_of_a_band_is_changed_it_gives_the_labels_that_were_put_or_an_error(
    tmp_path: Path,
) -> None:
    whole = (np.add.outer(np.arange(64), np.arange(90)) // 7 % 3).astype(np.uint8)
    folder = BandFolder(tmp_path, 64, 90)
    folder.put(Band(0, whole, None))
    (path,) = tmp_path.glob("band-*")
    good = path.read_bytes()
    refused = 0
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x81]) + good[at + 1 :])
        try:
            np.testing.assert_array_equal(folder.band(0).labels, whole)
        except VerificationError:
            refused += 1
    assert refused > len(good) // 2


def test_probabilities_are_a_zarr_array_that_names_its_classes(tmp_path: Path) -> None:
    bands = [band(0, BAND_ROWS, 300), band(BAND_ROWS, 20, 300)]
    size = (BAND_ROWS + 20, 300)
    write_probabilities(tmp_path / "p.zarr", iter(bands), size, classes=CLASSES, mpp=0.5)
    array = zarr.open_array(tmp_path / "p.zarr", mode="r")
    wanted = np.concatenate([one.probabilities for one in bands], axis=1)
    np.testing.assert_array_equal(array[:], wanted)
    assert array.attrs["classes"] == CLASSES and array.attrs["mpp"] == 0.5
    assert array.dtype == np.float16 and array.chunks == (2, 256, 256)


def test_areas_are_pixels_times_their_size() -> None:
    wanted = labels(300, 200)
    found = areas_of(counted([wanted[:100], wanted[100:]]), CLASSES, 0.5)
    assert [area.name for area in found] == [*CLASSES, "tissue"]
    assert found[0].mm2 == pytest.approx((wanted == 0).sum() * 0.25e-6)
    assert found[2].pixels == (wanted != IGNORE).sum()
    assert found[0].share + found[1].share == pytest.approx(1)
    rows = list(csv.DictReader(io.StringIO(to_csv(found).decode())))
    assert [row["class"] for row in rows] == [*CLASSES, "tissue"]
    assert int(rows[0]["pixels"]) == found[0].pixels


def test_a_slide_without_tissue_has_areas_of_zero_and_no_shares() -> None:
    found = areas_of(counted([np.full((5, 5), IGNORE, np.uint8)]), CLASSES, 0.5)
    assert [area.mm2 for area in found] == [0, 0, 0]
    assert to_csv(found).decode().splitlines()[1] == "Tumour,0,0.000000,"


def glass(height: int = 400, width: int = 500, colour: tuple[int, int, int] = GLASS) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).integers(-3, 4, (height, width, 1))
    return (np.array(colour) + noise).clip(0, 255).astype(np.uint8)


def test_tissue_is_what_is_stained_and_glass_shadow_and_dust_are_not() -> None:
    slide = glass()
    slide[100:200, 100:300] = PINK
    slide[130:160, 180:210] = GLASS  # a lumen of 0.09 mm²
    slide[250:350, 50:150] = (150, 150, 150)  # a shadow
    slide[5:8, 5:8] = PURPLE  # dust
    found = find_tissue(slide, 10.0, 3, "auto")
    assert found.mask[102:198, 102:298].all()
    rim = np.ones_like(found.mask)
    rim[96:204, 96:304] = False
    assert not found.mask[rim].any()
    assert found.rows(300, 303, 900).sum() == 3 * found.mask[100, :300].sum() * 3
    assert found.any_in(280, 280, 30) and not found.any_in(-20, -20, 40)


@pytest.mark.parametrize("colour", [(250, 250, 250), (225, 226, 228), (200, 200, 200)])
def test_glass_alone_holds_no_tissue_however_dark_the_lamp(colour: tuple[int, int, int]) -> None:
    assert not find_tissue(glass(colour=colour), 10.0, 1, "auto").mask.any()


def test_glass_that_reaches_the_rim_is_no_hole_however_small_the_picture() -> None:
    slide = glass(60, 60)
    slide[20:40, :] = PINK
    found = find_tissue(slide, 4.0, 1, "auto").mask
    assert found[22:38].all() and not found[:12].any() and not found[-12:].any()


@pytest.mark.parametrize("colour", [PINK, PURPLE, (190, 180, 200)])
def test_tissue_alone_is_not_cut_in_two(colour: tuple[int, int, int]) -> None:
    assert find_tissue(glass(colour=colour), 10.0, 1, "auto").mask.all()


def test_a_threshold_can_be_given_and_everything_taken() -> None:
    slide = glass()
    slide[100:200, 100:300] = PINK
    assert find_tissue(slide, 10.0, 1, "all").mask.all()
    assert not find_tissue(slide, 10.0, 1, 2.0).mask.any()
    assert find_tissue(slide, 10.0, 1, 0.1).threshold == 0.1


def test_otsu_parts_two_groups() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.1, 0.02, 900), rng.normal(0.6, 0.05, 300)]).astype(np.float32)
    assert 0.15 < otsu(values) < 0.5
    assert otsu(np.full(10, 0.3, np.float32)) == pytest.approx(0.3, abs=1)


def test_the_picture_shows_the_slide_the_tissue_and_the_classes() -> None:
    thumbnail, shown = glass(120, 100), np.full((120, 100), IGNORE, np.uint8)
    shown[40:80, 30:60] = 1
    laid = overlay(thumbnail, shown, COLOURS)
    np.testing.assert_array_equal(laid[:40], thumbnail[:40])
    mixed = 0.55 * thumbnail[50, 50].astype(float) + 0.45 * COLOURS[1]
    np.testing.assert_allclose(laid[50, 50], mixed, atol=1)
    tissue = Tissue(shown != IGNORE, 1, 0.03)
    found = areas_of(counted([shown]), CLASSES, 0.5)
    png = picture(thumbnail, tissue, shown, found, COLOURS, "µm² of a slide")
    assert Image.open(io.BytesIO(png)).size[1] > 120
    assert png == picture(thumbnail, tissue, shown, found, COLOURS, "µm² of a slide")
