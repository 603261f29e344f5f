"""Slides are opened through openslide or as plain images; what cannot be read is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from slide_kit import write_slide

from stages.slides.image_source import TiffSource
from stages.slides.opening import open_slide
from stages.slides.openslide_source import OpenSlideSource
from stages.slides.source import Level, level_of
from store.errors import InputError

DISCS = [(300.0, 300.0, 200.0)]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slide") / "a.tif", (1024, 768), DISCS)


def image(height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_a_pyramid_is_read_through_openslide_with_its_levels_and_mpp(slide: Path) -> None:
    source = open_slide(slide)
    assert isinstance(source, OpenSlideSource)
    assert source.levels == (Level(1024, 768, 1.0), Level(256, 192, 4.0), Level(64, 48, 16.0))
    assert source.mpp == pytest.approx(0.5)
    with tifffile.TiffFile(slide) as tiff:
        for level in range(3):
            whole = tiff.pages[level].asarray()
            piece = source.read(level, 10, 7, 40, 30)
            np.testing.assert_allclose(piece.astype(int), whole[10:50, 7:37].astype(int), atol=3)
    source.close()


def test_what_a_slide_holds_no_pixels_of_is_background_and_not_black(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    tiles = iter([np.zeros((64, 64, 3), np.uint8), None])
    tifffile.imwrite(
        path,
        tiles,
        shape=(64, 128, 3),
        dtype=np.uint8,
        tile=(64, 64),
        photometric="rgb",
        compression="deflate",
    )
    source = open_slide(path)
    assert (source.read(0, 0, 64, 64, 64) == 255).all()
    assert (source.read(0, 0, 0, 64, 64) == 0).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "planar.tif"])
def test_plain_images_are_read_pixel_for_pixel_and_have_no_mpp(tmp_path: Path, name: str) -> None:
    pixels, path = image(), tmp_path / name
    if name == "a.png":
        Image.fromarray(pixels).save(path, dpi=(72, 72))
    elif name == "a.tif":
        tifffile.imwrite(
            path, pixels, photometric="rgb", rowsperstrip=7, resolution=(72, 72), resolutionunit="INCH"
        )
    else:
        planes = np.moveaxis(pixels, -1, 0)
        tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    source = open_slide(path)
    assert source.levels == (Level(60, 80, 1.0),)
    assert source.mpp is None
    np.testing.assert_array_equal(source.read(0, 11, 5, 20, 33), pixels[11:31, 5:38])
    source.close()


def test_the_mpp_of_an_ome_tiff_is_the_one_in_its_description(tmp_path: Path) -> None:
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 250.0, "PhysicalSizeYUnit": "nm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", image(), photometric="rgb", metadata=metadata)
    source = open_slide(tmp_path / "a.ome.tif")
    assert isinstance(source, TiffSource)
    assert source.mpp == 0.25


def test_the_levels_of_an_ome_tiff_are_found_though_openslide_knows_but_the_first(tmp_path: Path) -> None:
    pixels, path = image(128, 192), tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        how = {"tile": (64, 64), "photometric": "rgb"}
        metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        tiff.write(pixels, subifds=1, metadata=metadata, **how)
        tiff.write(np.ascontiguousarray(pixels[::2, ::2]), subfiletype=1, **how)
    source = open_slide(path)
    assert [level.downsample for level in source.levels] == [1, 2] and source.mpp == 0.5
    np.testing.assert_array_equal(source.read(1, 3, 5, 40, 50), pixels[6:86:2, 10:110:2])


def test_a_resolution_that_no_microscope_has_is_none(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", (256, 256), DISCS, mpp=21.2, levels=(1,))
    assert open_slide(path).mpp is None


def test_the_same_pixels_elsewhere_are_the_same_slide(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "b.tif").write_bytes(slide.read_bytes())
    assert open_slide(tmp_path / "b.tif").identity == open_slide(slide).identity
    other = write_slide(tmp_path / "c.tif", (1024, 768), [(300.0, 310.0, 200.0)])
    assert open_slide(other).identity != open_slide(slide).identity


def test_a_downsample_is_whole_where_only_the_rim_says_otherwise() -> None:
    assert level_of((2967, 2220), 741, 555).downsample == 4
    assert level_of((2967, 2220), 742, 555).downsample == 4
    assert level_of((3000, 3000), 1150, 1150).downsample == pytest.approx(2.6087, abs=1e-4)


def refused(path: Path, *said: str) -> None:
    with pytest.raises(InputError) as error:
        open_slide(path)
    assert str(path) in str(error.value)
    for text in said:
        assert text in str(error.value), error.value


def test_a_truncated_slide_is_refused_before_anything_is_read(slide: Path, tmp_path: Path) -> None:
    data = slide.read_bytes()
    cut = tmp_path / "cut.tif"
    cut.write_bytes(data[: len(data) // 2])
    refused(cut, "truncated")


def test_a_slide_whose_list_of_images_is_cut_off_is_called_truncated(shared: Path, tmp_path: Path) -> None:
    data = (shared / "data/wsi/CMU-1-Small-Region.svs").read_bytes()
    for share in (0.1, 0.5, 0.98):
        (tmp_path / "cut.svs").write_bytes(data[: int(share * len(data))])
        refused(tmp_path / "cut.svs", "truncated")


def test_a_level_whose_pixels_are_missing_is_refused_and_named(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", (512, 512), DISCS, levels=(1, 4))
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tag = tiff.pages[1].tags["TileOffsets"]
        tag.overwrite([10**7] * tag.count)
    refused(path, "image 1", "truncated")


def test_a_slide_whose_list_of_levels_is_broken_is_refused(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", (512, 512), DISCS, levels=(1, 4))
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[1].offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 8] = b"\xff" * 8
    path.write_bytes(data)
    refused(path)


def test_damaged_pixels_are_refused_when_they_are_read(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", (512, 512), DISCS, levels=(1,))
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[0], page.databytecounts[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = b"\0" * count
    path.write_bytes(data)
    source = open_slide(path)
    with pytest.raises(InputError, match="cannot be read at x = 0, y = 0 of level 0"):
        source.read(0, 0, 0, 64, 64)


def test_what_is_no_slide_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.svs").write_bytes(b"")
    refused(tmp_path / "empty.svs", "empty")
    (tmp_path / "text.svs").write_text("no slide at all")
    refused(tmp_path / "text.svs", "no slide", "openslide")
    (tmp_path / "text.tif").write_text("no slide at all")
    refused(tmp_path / "text.tif")
    (tmp_path / "text.png").write_text("no slide at all")
    refused(tmp_path / "text.png")
    (tmp_path / "slide.isyntax").write_bytes(b"<?xml" + bytes(1000))
    refused(tmp_path / "slide.isyntax", "no slide that can be read")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "folder")
    refused(tmp_path / "absent.svs", "does not exist")


def test_grey_and_16_bit_images_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "grey.tif", image()[..., 0])
    refused(tmp_path / "grey.tif", "not RGB")
    tifffile.imwrite(tmp_path / "deep.tif", image().astype(np.uint16), photometric="rgb")
    refused(tmp_path / "deep.tif", "not 8 bit")


def test_images_that_are_to_be_shown_turned_are_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(image()).save(tmp_path / "a.jpg", exif=exif)
    tifffile.imwrite(tmp_path / "a.tif", image(), photometric="rgb", extratags=[(274, "H", 1, 3, False)])
    for name in ("a.jpg", "a.tif"):
        refused(tmp_path / name, "orientation 3", "-auto-orient")


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}
    tifffile.imwrite(tmp_path / "a.ome.tif", image(), photometric="rgb", metadata=metadata)
    refused(tmp_path / "a.ome.tif", "not square", "0.25 × 0.5")


def test_the_real_slide_opens(shared: Path) -> None:
    path = shared / "data/wsi/CMU-1-Small-Region.svs"
    source = open_slide(path)
    assert (source.levels[0].height, source.levels[0].width, source.mpp) == (2967, 2220, 0.499)
    whole = np.asarray(openslide.OpenSlide(path).read_region((1000, 1200), 0, (300, 200)))[..., :3]
    np.testing.assert_array_equal(source.read(0, 1200, 1000, 200, 300), whole)
