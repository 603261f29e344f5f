"""Images that are no slides of openslide's: whole in memory, or a TIFF read piece by piece."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from stages.slides.source import Level, check_whole, content_identity, level_of, one_mpp
from stages.tiles.images import reading, refuse_turned, tiff_orientation
from store.errors import InputError

_EXPORT = "Export it as 8-bit RGB, in one page or as a pyramid."
_MICRONS = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3}
_CENTIMETRE = 3  # of the TIFF tag ResolutionUnit


class ArraySource:
    """An image (H, W, 3) uint8 in memory; see :class:`stages.slides.source.SlideSource`."""

    def __init__(
        self, path: Path, image: NDArray[np.uint8], identity: Mapping[str, Any], mpp: float | None = None
    ) -> None:
        self.path, self._image, self.identity, self.mpp = path, image, identity, mpp
        self.levels: tuple[Level, ...] = (Level(image.shape[0], image.shape[1], 1.0),)

    def read(self, level: int, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """Return a piece of the image."""
        return self._image[top : top + height, left : left + width]

    def close(self) -> None:
        """Nothing is open."""


class TiffSource:
    """A TIFF image, in tiles or strips, with or without a pyramid; see :class:`stages.slides.source.SlideSource`.

    Its pixels are read as they are asked for. µm a pixel are those of its OME description, else of resolution tags in
    centimetres (in inches, or without a unit, they are mostly a printer's).
    """

    def __init__(self, path: Path) -> None:
        check_whole(path)
        self.path = path
        with reading(path):
            self._tiff = tifffile.TiffFile(path)
        try:
            with reading(path):
                series = self._series()
                height, width = _size(series.levels[0])
                self.levels: tuple[Level, ...] = tuple(
                    level_of((height, width), *_size(level)) for level in series.levels
                )
                self._planar = series.levels[0].axes == "SYX"
                self._arrays: list[Any] = [zarr.open(level.aszarr(), mode="r") for level in series.levels]
                self.mpp = one_mpp(path, *_resolution(self._tiff))
        except BaseException:
            self._tiff.close()
            raise
        self.identity: Mapping[str, Any] = content_identity(path)
        self._lock = Lock()

    def read(self, level: int, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """Return a piece of a level."""
        rows, columns = slice(top, top + height), slice(left, left + width)
        with self._lock, reading(self.path):
            if self._planar:
                return np.ascontiguousarray(np.moveaxis(self._arrays[level][:3, rows, columns], 0, -1))
            return np.ascontiguousarray(self._arrays[level][rows, columns, :3])

    def close(self) -> None:
        """Close the file."""
        self._tiff.close()

    def _series(self) -> Any:
        if not self._tiff.series:
            raise InputError("the file holds no image", where=self.path, remedy="Copy or download it again.")
        series = self._tiff.series[0]
        page = series.levels[0].keyframe
        refuse_turned(self.path, tiff_orientation(page))
        photometric = tifffile.PHOTOMETRIC(page.photometric).name
        if photometric not in ("RGB", "YCBCR") or series.axes not in ("YXS", "SYX"):
            raise InputError(
                f"the image is not RGB (photometric {photometric}, axes {series.axes})",
                where=self.path,
                remedy=_EXPORT,
            )
        if series.dtype != np.uint8:
            raise InputError(f"the image is {series.dtype}, not 8 bit", where=self.path, remedy=_EXPORT)
        if any(
            0 in page.databytecounts for level in series.levels for page in level.pages if page is not None
        ):
            raise InputError(
                "the file is incomplete: some strips or tiles were never written",
                where=self.path,
                remedy="Copy or download it again.",
            )
        return series


def _size(level: Any) -> tuple[int, int]:
    axes = dict(zip(level.axes, level.shape, strict=True))
    return int(axes["Y"]), int(axes["X"])


def _resolution(tiff: tifffile.TiffFile) -> tuple[float | None, float | None]:
    """Return µm a pixel along x and y."""
    if tiff.ome_metadata:
        pixels = ElementTree.fromstring(tiff.ome_metadata).find(".//{*}Pixels")
        return _ome(pixels, "X"), _ome(pixels, "Y")
    tags = tiff.pages[0].aspage().tags
    unit = tags.valueof("ResolutionUnit")
    if unit is None or int(unit) != _CENTIMETRE:
        return None, None
    return _length(tags.valueof("XResolution")), _length(tags.valueof("YResolution"))


def _ome(pixels: Any, axis: str) -> float | None:
    if pixels is None or pixels.get(f"PhysicalSize{axis}") is None:
        return None
    unit = _MICRONS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return None if unit is None else float(pixels.get(f"PhysicalSize{axis}")) * unit


def _length(pixels_a_centimetre: Any) -> float | None:
    if not pixels_a_centimetre or not pixels_a_centimetre[0]:
        return None
    return float(1e4 * pixels_a_centimetre[1] / pixels_a_centimetre[0])
