"""RGB images from PNG, JPEG and TIFF files: 8 bit, three channels, or a refusal that names the file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from store.errors import AccessError, InputError

TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"}) | TIFF_SUFFIXES

_EXPORT_RGB = "Export it as 8-bit RGB (PNG, JPEG or TIFF)."
_FETCH_AGAIN = "Re-download or re-export it."
_ORIENTATION = 274  # the tag of TIFF and EXIF
_UPRIGHT = 1


class TiffImage(NamedTuple):
    """The one image of a TIFF file: (H, W) or (H, W, S) as stored, and its photometric interpretation."""

    array: NDArray[Any]
    photometric: str


class PngHeader(NamedTuple):
    """Bits a sample and colour type (0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGBA) of a PNG file."""

    bits: int
    colour: int


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what decoders raise for a missing, forbidden, damaged or oversized file into an ``InputError``."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError("the file does not exist", where=path, remedy="Correct the path.") from error
    except PermissionError as error:
        raise AccessError(
            "the file may not be read", where=path, remedy="Ask for the right to read it."
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(
            "the image has more pixels than can be decoded at once",
            where=path,
            remedy="Cut it into regions, or convert it to TIFF.",
        ) from error
    except (InputError, MemoryError):
        raise
    # Pillow, tifffile and the codecs raise whatever a damaged byte leads to: OSError, SyntaxError, IndexError, …
    except Exception as error:
        raise InputError(
            f"the file is truncated or damaged ({type(error).__name__}: {error})",
            where=path,
            remedy=_FETCH_AGAIN,
        ) from error


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return an image file as (H, W, 3) uint8 RGB, C-contiguous.

    8-bit RGB, RGBA (alpha is dropped) and palette PNG are read. Raises ``InputError`` naming the file for grey, 16-bit,
    CMYK, multi-page, truncated and missing files, and for those to be shown turned (see :func:`refuse_turned`).
    """
    with reading(path):
        if path.suffix.lower() in TIFF_SUFFIXES:
            return _rgb_of_tiff(path)
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            _refuse_deep_png(path, image)
            if image.mode not in ("RGB", "RGBA", "P"):
                raise InputError(
                    f"the image is {_mode_words(image.mode)}, not RGB", where=path, remedy=_EXPORT_RGB
                )
            pixels = np.array(image.convert("RGB") if image.mode != "RGB" else image)
            refuse_turned(path, exif_orientation(image))
            return pixels


def image_size(path: Path) -> tuple[int, int]:
    """Return (H, W) of an image file from its header, without decoding its pixels.

    Raises ``InputError`` for a file that is missing, damaged or none of an image.
    """
    with reading(path):
        if path.suffix.lower() in TIFF_SUFFIXES:
            with tifffile.TiffFile(path) as tiff:
                page = _only_page(path, tiff)
                return int(page.imagelength), int(page.imagewidth)
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.height, image.width


def exif_orientation(image: Image.Image) -> Any:
    """Return what the EXIF or XMP data of a decoded image say of its orientation; None where they do not say it."""
    try:
        return image.getexif().get(_ORIENTATION)
    except (SyntaxError, struct.error, ValueError, KeyError, TypeError):  # illegible to other programs, too
        return None


def tiff_orientation(page: Any) -> Any:
    """Return the orientation of a page of a TIFF file, None where it has none."""
    return page.tags.valueof(_ORIENTATION)


def refuse_turned(path: Path, orientation: Any) -> None:
    """Raise ``InputError`` for an image that is to be shown turned or mirrored, as its orientation tag says.

    Some programs show it so and others do not, so that nobody can tell from its mask or its annotations to which of
    the two they were drawn.
    """
    if orientation not in (None, 0, _UPRIGHT):  # 0 is what some write who do not know it
        raise InputError(
            f"its pixels are stored turned or mirrored (orientation {orientation}, where {_UPRIGHT} is upright), which "
            "not all programs heed, so that it is not clear how masks and annotations lie on it",
            where=path,
            remedy="Store it upright (mogrify -auto-orient), or remove the tag (exiftool -Orientation=) where masks "
            "and annotations were drawn in a program that ignores it.",
        )


def read_tiff(path: Path) -> TiffImage:
    """Return the one image of a TIFF file, channels last, after checking that every byte of it is in the file.

    A pyramid gives its full resolution. Raises ``InputError`` for several images, for missing strips or tiles, which
    decoders would fill with zeros, and for an image to be shown turned (see :func:`refuse_turned`).
    """
    with tifffile.TiffFile(path) as tiff:
        page = _only_page(path, tiff)
        refuse_turned(path, tiff_orientation(page))
        size = path.stat().st_size
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if count == 0 or offset + count > size:
                raise InputError(
                    f"the file is truncated: it ends at byte {size:,}, its pixels at byte {offset + count:,}"
                    if count
                    else "the file is incomplete: some strips or tiles were never written",
                    where=path,
                    remedy=_FETCH_AGAIN,
                )
        array = page.asarray()
        if page.axes == "SYX":
            array = np.moveaxis(array, 0, -1)
        return TiffImage(array, page.photometric.name)


def png_header(path: Path) -> PngHeader | None:
    """Return the sample depth and colour type of a PNG file, ``None`` for a file of another format.

    Pillow widens 2- and 4-bit samples and narrows 16-bit ones without a word, so the depth is read from the file.
    """
    with path.open("rb") as file:
        head = file.read(26)
    if len(head) < 26 or not head.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    return PngHeader(bits=head[24], colour=head[25])


def _only_page(path: Path, tiff: Any) -> Any:
    if not len(tiff.pages):
        raise InputError("the file is truncated or damaged (no image in it)", where=path, remedy=_FETCH_AGAIN)
    if len(tiff.series) > 1 or len(tiff.series[0].levels[0].pages) > 1:
        raise InputError(
            f"the file holds {max(len(tiff.series), len(tiff.series[0].levels[0].pages))} images, not one",
            where=path,
            remedy="Export the one image to use, flat, as a TIFF of its own.",
        )
    return tiff.series[0].levels[0].pages[0]


def _rgb_of_tiff(path: Path) -> NDArray[np.uint8]:
    array, photometric = read_tiff(path)
    if array.dtype != np.uint8:
        raise InputError(f"the image is {array.dtype}, not 8 bit", where=path, remedy=_EXPORT_RGB)
    if array.ndim != 3 or array.shape[-1] not in (3, 4) or photometric not in ("RGB", "YCBCR"):
        channels = 1 if array.ndim == 2 else array.shape[-1]
        raise InputError(
            f"the image is not RGB (photometric {photometric}, channels: {channels})",
            where=path,
            remedy=_EXPORT_RGB,
        )
    return np.ascontiguousarray(array[..., :3])


def _refuse_deep_png(path: Path, image: Image.Image) -> None:
    header = png_header(path) if image.format == "PNG" else None
    if header and header.bits > 8:
        raise InputError(f"the image has {header.bits} bits a channel, not 8", where=path, remedy=_EXPORT_RGB)


def _mode_words(mode: str) -> str:
    words = {"L": "8-bit grey", "1": "1-bit black and white", "LA": "grey with alpha", "CMYK": "CMYK"}
    return words.get(mode, f"of Pillow's mode {mode}")
