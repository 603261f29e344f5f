from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from stages.tiles.dataset import IGNORE
from stages.tiles.labels import ClassMap, read_label_mask
from store.errors import InputError, InputErrors

LABELS = np.array([[0, 1, 1], [2, 2, 0]], np.uint8)
CLASSES = ClassMap.of({"A": [1], "B": [0, 2]})
WANTED = np.array([[1, 0, 0], [1, 1, 1]], np.uint8)


def test_grey_png_and_tiff_of_8_and_16_bits_give_the_same_classes(tmp_path: Path) -> None:
    Image.fromarray(LABELS).save(tmp_path / "8.png")
    Image.fromarray(LABELS.astype(np.uint16)).save(tmp_path / "16.png")
    tifffile.imwrite(tmp_path / "8.tif", LABELS)
    tifffile.imwrite(tmp_path / "16.tif", LABELS.astype(np.uint16), compression="deflate")
    for name in ("8.png", "16.png", "8.tif", "16.tif"):
        mask = read_label_mask(tmp_path / name, CLASSES)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, WANTED, err_msg=name)


def test_16_bit_labels_above_255_keep_their_value(tmp_path: Path) -> None:
    labels = np.array([[1, 257], [40000, 1]], np.uint16)
    Image.fromarray(labels).save(tmp_path / "a.png")
    mask = read_label_mask(tmp_path / "a.png", ClassMap.of({"A": [1], "B": [257, 40000]}))
    np.testing.assert_array_equal(mask, [[0, 1], [1, 0]])


def png_of_bits(path: Path, labels: np.ndarray, bits: int) -> None:
    """Write a grey PNG with samples of 1, 2 or 4 bits, which Pillow itself does not write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = labels.shape
    rows = b""
    for row in labels:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text = text.ljust(-(-len(text) // 8) * 8, "0")
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("bits", [2, 4])
def test_samples_below_8_bits_are_not_spread_over_0_to_255(tmp_path: Path, bits: int) -> None:
    png_of_bits(tmp_path / "a.png", LABELS, bits)
    np.testing.assert_array_equal(read_label_mask(tmp_path / "a.png", CLASSES), WANTED)


def test_black_and_white_masks_are_labels_0_and_1(tmp_path: Path) -> None:
    Image.fromarray(LABELS == 1).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", LABELS == 1, photometric="minisblack")
    for name in ("a.png", "a.tif"):
        mask = read_label_mask(tmp_path / name, ClassMap.of({"No": [0], "Yes": [1]}))
        np.testing.assert_array_equal(mask, LABELS == 1)


def palette(path: Path) -> None:
    image = Image.fromarray(LABELS, mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(path)


def test_a_palette_mask_gives_indices_or_with_colour_classes_its_colours(tmp_path: Path) -> None:
    palette(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_mask(tmp_path / "a.png", CLASSES), WANTED)
    by_colour = ClassMap.of({"A": ["#00FF00"], "B": ["#ff0000", "#0000ff"]})
    np.testing.assert_array_equal(read_label_mask(tmp_path / "a.png", by_colour), WANTED)


def test_colour_masks_are_read_through_their_colours_with_opaque_alpha(tmp_path: Path) -> None:
    rgb = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[LABELS]
    classes = ClassMap.of({"A": ["#00ff00"], "B": ["#ff0000"]}, ignore=["#0000FF"])
    wanted = np.where(LABELS == 2, IGNORE, WANTED)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([rgb, np.full(LABELS.shape, 255, np.uint8)])).save(tmp_path / "b.png")
    tifffile.imwrite(tmp_path / "c.tif", rgb, photometric="rgb")
    for name in ("a.png", "b.png", "c.tif"):
        np.testing.assert_array_equal(read_label_mask(tmp_path / name, classes), wanted)


def test_an_unknown_label_is_named_with_its_pixels_and_the_known_ones(tmp_path: Path) -> None:
    labels = np.zeros((10, 10), np.uint8)
    labels[:3] = 7
    labels[9, 9] = 9
    Image.fromarray(labels).save(tmp_path / "a.png")
    with pytest.raises(InputError) as caught:
        read_label_mask(tmp_path / "a.png", ClassMap.of({"A": [0], "B": [1]}))
    text = str(caught.value)
    assert "7 (30 pixels), 9 (1 pixels)" in text
    assert "known labels: 0, 1" in text
    assert str(tmp_path / "a.png") in text


def test_an_unknown_colour_is_named_and_many_are_counted(tmp_path: Path) -> None:
    rgb = np.zeros((4, 8, 3), np.uint8)
    rgb[0, :, 0] = np.arange(8)
    rgb[1, :, 1] = np.arange(8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"#010000 \(1 pixels\).* and 4 more"):
        read_label_mask(tmp_path / "a.png", ClassMap.of({"A": ["#000000"], "B": ["#ffffff"]}))


def test_an_ignored_label_is_left_out_on_purpose(tmp_path: Path) -> None:
    Image.fromarray(LABELS).save(tmp_path / "a.png")
    mask = read_label_mask(tmp_path / "a.png", ClassMap.of({"A": [1], "B": [0]}, ignore=[2]))
    np.testing.assert_array_equal(mask, np.where(LABELS == 2, IGNORE, WANTED))


def test_a_mask_of_another_kind_than_the_classes_says_so(tmp_path: Path) -> None:
    Image.fromarray(LABELS).save(tmp_path / "grey.png")
    with pytest.raises(InputError, match='"classes" gives no labels for it'):
        read_label_mask(tmp_path / "grey.png", ClassMap.of({"A": ["#000000"], "B": ["#ffffff"]}))


def inverted(path: Path) -> None:
    tifffile.imwrite(path, LABELS, photometric="miniswhite")


def transparent(path: Path) -> None:
    Image.fromarray(np.zeros((2, 3, 4), np.uint8)).save(path)


def float_tiff(path: Path) -> None:
    tifffile.imwrite(path, LABELS.astype(np.float32))


def jpeg_in_disguise(path: Path) -> None:
    Image.fromarray(LABELS).save(path, format="JPEG")


def grey_alpha(path: Path) -> None:
    Image.fromarray(LABELS).convert("LA").save(path)


def turned_png(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(LABELS).save(path, exif=exif)


def turned_tiff(path: Path) -> None:
    tifffile.imwrite(path, LABELS, extratags=[(274, "H", 1, 8, False)])


def channels(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((4, 5, 2), np.uint8), photometric="minisblack", planarconfig="contig")


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("a.tif", inverted, "inverted"),
        ("a.png", transparent, "transparent"),
        ("a.tif", float_tiff, "float32"),
        ("a.png", jpeg_in_disguise, "not a PNG"),
        ("a.png", grey_alpha, "grey with alpha"),
        ("a.tif", channels, "2 channels"),
        ("a.png", turned_png, "orientation 8"),
        ("a.tif", turned_tiff, "orientation 8"),
    ],
)
def test_masks_that_could_be_misread_are_refused(tmp_path: Path, name: str, make, said: str) -> None:
    make(tmp_path / name)
    with pytest.raises(InputError, match=said) as caught:
        read_label_mask(tmp_path / name, CLASSES)
    assert caught.value.where == str(tmp_path / name)


def test_a_truncated_mask_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="Re-download or re-export"):
        read_label_mask(tmp_path / "a.png", CLASSES)


@pytest.mark.parametrize(
    ("classes", "options", "said"),
    [
        ({"A": [1], "B": [1]}, {}, "given to both A and B"),
        ({"A": ["#00ff00"], "B": ["#00FF00"]}, {}, "given to both A and B"),
        ({"A": [1], "B": [2]}, {"ignore": [2]}, "given to both B and ignore"),
        ({"A": [1], "B": []}, {}, "B has no label"),
        ({"A": [1]}, {}, "1 classes are given"),
        ({"A": [1], "B": [70000]}, {}, "outside 0 to 65535"),
        ({"A": [1], "B": [True]}, {}, "neither an integer nor a text"),
        ({"A": [1], "B": ["#12"]}, {}, "no colour"),
        ({"A": [1], "B": [" "]}, {}, "empty"),
        ({"A": [1], "ignore": [2]}, {}, "cannot be named"),
        ({"A": [1], "B": [2]}, {"unlabelled": "C"}, "neither 'ignore' nor a class"),
        ({"A": ["x"], "B": ["y"]}, {"draw_order": ["x"]}, "lacks label 'y'"),
        ({"A": ["x"], "B": ["y"]}, {"draw_order": ["x", "y", "z"]}, "'z', which is no label"),
        ({"A": ["x"], "B": ["y"]}, {"draw_order": ["x", "y", "x"]}, "'x' twice"),
    ],
)
def test_a_class_table_that_cannot_be_used_is_explained(classes, options, said: str) -> None:
    with pytest.raises(InputError, match=said):
        ClassMap.of(classes, **options)


def test_every_fault_of_a_class_table_is_told_at_once() -> None:
    with pytest.raises(InputErrors) as caught:
        ClassMap.of({"A": [1, -1], "B": [1], "C": []}, unlabelled="D")
    assert len(caught.value.faults) == 4


def test_a_class_that_only_unlabelled_pixels_have_needs_no_label() -> None:
    assert ClassMap.of({"A": ["x"], "Rest": []}, unlabelled="Rest").unlabelled == 1


def test_real_colour_masks_agree_with_the_label_masks_made_from_them(shared: Path) -> None:
    folder = shared / "data/ihc_deepliif"
    reds = [f"#{red:02x}0000" for red in range(200, 256)]  # the original colours are not quite clean
    colours = ClassMap.of({"Background": ["#000000", "#00ff00"], "Negative": ["#0000ff"], "Positive": reds})
    numbers = ClassMap.of({"Background": [0], "Negative": [1], "Positive": [2]})
    names = sorted(path.name for path in (folder / "masks").iterdir())
    assert len(names) == 4
    for name in names:
        by_colour = read_label_mask(folder / "seg_rgb" / name, colours)
        by_number = read_label_mask(folder / "masks" / name, numbers)
        assert len(np.unique(by_number)) == 3
        assert (by_colour == by_number).mean() > 0.999, name
