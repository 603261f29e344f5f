from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from stages.tiles.images import image_size, read_image
from store.errors import InputError

RGB = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def with_alpha(rgb: np.ndarray) -> np.ndarray:
    return np.dstack([rgb, np.full(rgb.shape[:2], 7, np.uint8)])


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.TIFF"])
@pytest.mark.parametrize("alpha", [False, True])
def test_lossless_files_give_their_pixels_and_drop_alpha(tmp_path: Path, name: str, alpha: bool) -> None:
    path = tmp_path / name
    pixels = with_alpha(RGB) if alpha else RGB
    if path.suffix == ".png":
        Image.fromarray(pixels).save(path)
    else:
        tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=[2] if alpha else None)
    read = read_image(path)
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, RGB)
    assert image_size(path) == (37, 53)


@pytest.mark.parametrize("compression", ["lzw", "deflate", None])
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"planarconfig": "separate"}])
def test_tiff_layouts_give_the_same_pixels(tmp_path: Path, compression: str | None, layout: dict) -> None:
    path = tmp_path / "a.tif"
    pixels = np.moveaxis(RGB, -1, 0) if layout.get("planarconfig") else RGB
    tifffile.imwrite(path, pixels, photometric="rgb", compression=compression, **layout)
    np.testing.assert_array_equal(read_image(path), RGB)
    assert image_size(path) == (37, 53)


def test_a_jpeg_is_read_near_its_pixels(tmp_path: Path) -> None:
    smooth = np.dstack([np.add.outer(np.arange(64), np.arange(64))] * 3).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - smooth).max() < 8


def test_a_palette_png_gives_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode="P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0], [[10, 20, 30], [200, 100, 50]])


def test_a_pyramid_gives_its_full_resolution(tmp_path: Path) -> None:
    big = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(big, photometric="rgb", tile=(16, 16), subifds=1)
        tiff.write(big[::2, ::2], photometric="rgb", tile=(16, 16), subfiletype=1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), big)


def grey(path: Path) -> None:
    Image.fromarray(RGB[..., 0]).save(path)


def deep_rgb_png(path: Path) -> None:
    import imagecodecs

    path.write_bytes(imagecodecs.png_encode(RGB.astype(np.uint16) * 256))


def deep_tiff(path: Path) -> None:
    tifffile.imwrite(path, RGB.astype(np.uint16), photometric="rgb")


def cmyk(path: Path) -> None:
    Image.fromarray(RGB).convert("CMYK").save(path)


def grey_tiff(path: Path) -> None:
    tifffile.imwrite(path, RGB[..., 0], photometric="minisblack")


def stack(path: Path) -> None:
    tifffile.imwrite(path, np.stack([RGB, RGB]), photometric="rgb")


def two_images(path: Path) -> None:
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(RGB, photometric="rgb")
        tiff.write(RGB[:20], photometric="rgb")


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("a.png", grey, "8-bit grey"),
        ("a.png", deep_rgb_png, "16 bits a channel"),
        ("a.tif", deep_tiff, "uint16"),
        ("a.jpg", cmyk, "CMYK"),
        ("a.tif", grey_tiff, "not RGB"),
        ("a.tif", stack, "holds 2 images"),
        ("a.tif", two_images, "holds 2 images"),
    ],
)
def test_what_is_not_8_bit_rgb_is_refused_with_a_remedy(tmp_path: Path, name: str, make, said: str) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(InputError, match=said) as caught:
        read_image(path)
    assert caught.value.where == str(path)
    assert "Export" in str(caught.value.remedy)


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.95, 0.999])
@pytest.mark.parametrize("kind", ["a.png", "a.jpg", "plain.tif", "lzw.tif", "tiled.tif"])
def test_a_truncated_image_is_never_read_as_a_whole_one(tmp_path: Path, kind: str, kept: float) -> None:
    path = tmp_path / kind
    big = np.random.default_rng(2).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    if path.suffix == ".tif":
        options = {"lzw.tif": {"compression": "lzw"}, "tiled.tif": {"tile": (32, 32)}}
        tifffile.imwrite(path, big, photometric="rgb", **options.get(kind, {}))
    else:
        Image.fromarray(big).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match="Re-download or re-export") as caught:
        read_image(path)
    assert caught.value.where == str(path)


def turned_photograph(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(path, exif=exif)


def turned_tiff(path: Path, orientation: int) -> None:
    tifffile.imwrite(path, RGB, photometric="rgb", extratags=[(274, "H", 1, orientation, False)])


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.jpg", turned_photograph), ("a.png", turned_photograph), ("a.tif", turned_tiff)],
)
def test_an_image_that_is_to_be_shown_turned_is_refused(tmp_path: Path, name: str, write) -> None:
    write(tmp_path / name, 6)
    with pytest.raises(InputError, match=r"orientation 6, where 1 is upright") as caught:
        read_image(tmp_path / name)
    assert caught.value.where == str(tmp_path / name) and "-auto-orient" in str(caught.value.remedy)
    for upright in (0, 1):
        write(tmp_path / name, upright)
        assert read_image(tmp_path / name).shape == RGB.shape


def test_orientation_that_nobody_can_read_is_none(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=b"Exif\0\0no header at all")
    assert read_image(tmp_path / "a.jpg").shape == RGB.shape


def test_a_tiff_with_unwritten_strips_is_refused_instead_of_filled_with_black(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", rowsperstrip=8)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        counts = list(tiff.pages[0].databytecounts)
        tiff.pages[0].tags["StripByteCounts"].overwrite([0, *counts[1:]])
    with pytest.raises(InputError, match="never written"):
        read_image(path)


def test_a_missing_file_and_a_file_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("this is no image")
    with pytest.raises(InputError, match=r"text\.png"):
        read_image(tmp_path / "text.png")


def test_the_real_puma_region_is_read(shared: Path) -> None:
    path = shared / "data/puma_format/01_training_dataset_tif_ROIs/training_set_metastatic_roi_094.tif"
    region = read_image(path)
    assert region.shape == (1024, 1024, 3)
    assert image_size(path) == (1024, 1024)
    assert 100 < region.mean() < 230  # tissue on a bright field
