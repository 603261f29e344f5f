"""Slides in the formats that openslide reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray

from stages.slides.source import Level, check_whole, content_identity, level_of, one_mpp
from store.errors import InputError

_AGAIN = "Copy or download it again."


class OpenSlideSource:
    """A slide that openslide opened; see :class:`stages.slides.source.SlideSource`.

    Where a slide holds no pixels (between the fields of a scan) it is of the background colour it names, else white.
    """

    def __init__(self, path: Path) -> None:
        check_whole(path)
        self.path = path
        try:
            self._slide = openslide.OpenSlide(str(path))
        except openslide.OpenSlideError as error:
            raise InputError(f"the slide cannot be opened: {error}", where=path, remedy=_AGAIN) from error
        properties = self._slide.properties
        width, height = self._slide.dimensions
        self.levels: tuple[Level, ...] = tuple(
            level_of((height, width), rows, columns) for columns, rows in self._slide.level_dimensions
        )
        self.mpp = one_mpp(path, *(_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"))
        self._background = properties.get("openslide.background-color", "FFFFFF")
        # the hash covers formats of several files, of which the content of one says little
        self.identity: Mapping[str, Any] = {
            **content_identity(path),
            "quickhash": properties.get("openslide.quickhash-1"),
        }

    def read(self, level: int, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """Return pixels of a level; see :class:`stages.slides.source.SlideSource`."""
        factor = self._slide.level_downsamples[level]
        corner = (round(left * factor), round(top * factor))
        try:
            region = self._slide.read_region(corner, level, (width, height))
        except openslide.OpenSlideError as error:
            raise InputError(
                f"the slide cannot be read at x = {corner[0]}, y = {corner[1]} of level {level}: {error}",
                where=self.path,
                remedy=_AGAIN,
            ) from error
        rgba = np.asarray(region)
        alpha = rgba[..., 3]
        if (alpha == 255).all():
            return np.ascontiguousarray(rgba[..., :3])
        ground = np.frombuffer(bytes.fromhex(self._background), np.uint8).astype(np.uint32)
        share = alpha.astype(np.uint32)[..., None]
        return ((rgba[..., :3] * share + ground * (255 - share) + 127) // 255).astype(np.uint8)

    def close(self) -> None:
        """Close the file."""
        self._slide.close()


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
