"""Where pixels of a slide come from: a pyramid of levels, read piece by piece."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile
from numpy.typing import NDArray

from stages.tiles.images import reading
from store.errors import InputError

PLAUSIBLE_MPP = (0.02, 10.0)  # µm; 72 to 1200 dpi, which software writes without knowing, would be 353 to 21
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SQUARE_WITHIN = 0.01  # relative difference of the sides of a pixel


@dataclass(frozen=True)
class Level:
    """One resolution of a slide: its size in its own pixels, and how many pixels of level 0 one of them spans."""

    height: int
    width: int
    downsample: float


class SlideSource(Protocol):
    """An open slide. ``levels`` from the finest on; ``mpp`` is µm a pixel of level 0, None where unknown.

    ``identity`` is JSON-able and says which pixels these are. Safe to read from several threads at once.
    """

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """Its resolutions."""

    @property
    def mpp(self) -> float | None:
        """µm a pixel of level 0."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What tells this slide from others: content, not place."""

    def read(self, level: int, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """Return pixels (height, width, 3) uint8 RGB of a level, in its own coordinates; all of them lie on it.

        Raises :class:`InputError` naming the file where they cannot be decoded.
        """

    def close(self) -> None:
        """Give the file back."""


def level_of(size: tuple[int, int], height: int, width: int) -> Level:
    """Return the level of ``height`` × ``width`` pixels of a slide of ``size`` (H, W).

    A downsample that is a whole number but for the pixels at the rim is taken to be that number.
    """
    factor = (size[0] / height + size[1] / width) / 2
    whole = round(factor)
    if whole >= 1 and abs(size[0] / whole - height) <= 1 and abs(size[1] / whole - width) <= 1:
        factor = float(whole)
    return Level(height, width, factor)


def one_mpp(path: Path, x: float | None, y: float | None) -> float | None:
    """Return µm a pixel from those along x and y; None where one is missing or beyond what microscopes have.

    Raises :class:`InputError` for pixels that are not square.
    """
    if x is None or y is None or not all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in (x, y)):
        return None
    if abs(x - y) > SQUARE_WITHIN * min(x, y):
        raise InputError(
            f"the pixels of the slide are not square: {x:g} × {y:g} µm",
            where=path,
            remedy="Convert it to square pixels.",
        )
    return float((x + y) / 2)


def content_identity(path: Path) -> dict[str, Any]:
    """Return bytes and sha256 of a file."""
    with reading(path), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def check_whole(path: Path) -> None:
    """Raise :class:`InputError` where the pixels of a TIFF file, of whatever level, lie beyond its end.

    Files of other formats are passed over. A file that was cut is so known before hours are spent on it.
    """
    with reading(path):
        size = path.stat().st_size
        if not is_tiff(path):
            return
        with tifffile.TiffFile(path) as tiff:
            pages = [page.aspage() for page in tiff.pages]
            for number, page in enumerate(pages):
                ends = np.add(page.dataoffsets, page.databytecounts)
                if ends.size and (last := int(ends.max())) > size:
                    raise _truncated(path, f"it ends at byte {size:,}, image {number} in it at byte {last:,}")
            if not pages or _next(tiff, pages[-1].offset) not in (0, *(page.offset for page in pages)):
                raise _truncated(path, f"it ends at byte {size:,}, in the list of its images")


def _next(tiff: tifffile.TiffFile, offset: int) -> int:
    """Return where the image after the one at ``offset`` is said to be; 0 where that is the last."""
    form = tiff.tiff
    tiff.filehandle.seek(offset)
    (tags,) = struct.unpack(form.tagnoformat, tiff.filehandle.read(form.tagnosize))
    tiff.filehandle.seek(offset + form.tagnosize + tags * form.tagsize)
    return int(struct.unpack(form.offsetformat, tiff.filehandle.read(form.offsetsize))[0])


def _truncated(path: Path, how: str) -> InputError:
    return InputError(f"the file is truncated: {how}", where=path, remedy="Copy or download it again.")


def refuse_nothing(path: Path) -> None:
    """Raise :class:`InputError` for a path that is no file, or an empty one."""
    with reading(path):
        if path.is_dir():
            raise InputError(
                "this is a folder, not a slide", where=path, remedy="Give the slide's file in it."
            )
        if path.stat().st_size == 0:
            raise InputError("the file is empty", where=path, remedy="Copy or download it again.")


def is_tiff(path: Path) -> bool:
    """Return whether the file begins as a TIFF does, whatever it is called."""
    with reading(path), path.open("rb") as file:
        return file.read(4) in _TIFF
