"""Opens a slide: through openslide where it knows the format, else as a plain TIFF, PNG or JPEG image."""

from __future__ import annotations

from pathlib import Path

import openslide

from stages.slides.image_source import ArraySource, TiffSource
from stages.slides.openslide_source import OpenSlideSource
from stages.slides.source import SlideSource, content_identity, is_tiff, refuse_nothing
from stages.tiles.images import IMAGE_SUFFIXES, read_image
from store.errors import InputError

FORMATS = (
    "Formats are those of openslide (SVS, NDPI, MRXS, SCN, BIF, DICOM, tiled TIFF, …), TIFF, PNG and JPEG."
)

_OME = (".ome.tif", ".ome.tiff")  # whose levels and µm a pixel openslide does not find


def open_slide(path: Path) -> SlideSource:
    """Open a slide for reading.

    Raises :class:`InputError` for a file that is missing, empty, truncated, damaged or in no format that can be read,
    and :class:`store.errors.AccessError` for one that may not be read.
    """
    refuse_nothing(path)
    try:
        known = openslide.OpenSlide.detect_format(str(path)) is not None
    except openslide.OpenSlideError as error:
        raise InputError(
            f"the slide cannot be opened: {error}", where=path, remedy="Copy it again."
        ) from error
    if known and not path.name.lower().endswith(_OME):
        return OpenSlideSource(path)
    if is_tiff(path):
        return TiffSource(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ArraySource(path, read_image(path), content_identity(path))
    raise InputError("this is no slide that can be read", where=path, remedy=FORMATS)
