"""Class probabilities of a map as a zarr array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import zarr

from stages.slides.mapping import BAND_ROWS, Band
from stages.slides.writing import flush_folder
from store.errors import VerificationError


def write_probabilities(
    path: Path, bands: Iterator[Band], size: tuple[int, int], *, classes: Sequence[str], mpp: float
) -> None:
    """Write (C, H, W) float16 probabilities, 0 where there is no tissue, and flush them; bands are taken one at a time.

    A chunk holds all classes of 256 × 256 pixels; the attributes name the classes and the µm a pixel. Raises
    :class:`store.errors.VerificationError` for a band that holds none.
    """
    array = zarr.create_array(
        path,
        shape=(len(classes), *size),
        chunks=(len(classes), min(BAND_ROWS, size[0]), min(256, size[1])),
        dtype=np.float16,
        fill_value=0,
        dimension_names=("class", "y", "x"),
        attributes={"classes": list(classes), "mpp": mpp},
    )
    for band in bands:
        if band.probabilities is None:
            raise VerificationError(
                "A finished part of the map lacks its probabilities",
                where=path.parent,
                remedy="Remove this folder and run the command again.",
            )
        array[:, band.top : band.top + len(band.labels)] = band.probabilities
    flush_folder(path)
