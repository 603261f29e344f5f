"""How much of a slide each class covers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TISSUE = "tissue"  # what the last row of the table calls all classes together


@dataclass(frozen=True)
class Area:
    """What one class, or all tissue, covers: pixels of the map, mm², share of the tissue (NaN of none)."""

    name: str
    pixels: int
    mm2: float
    share: float


def counted(labels: Iterable[NDArray[np.uint8]]) -> NDArray[np.int64]:
    """Return how many pixels of a map, given in strips, have each label: (256,) int64."""
    counts = np.zeros(256, np.int64)
    for strip in labels:
        counts += np.bincount(strip.ravel(), minlength=256)
    return counts


def areas_of(counts: NDArray[np.int64], classes: Sequence[str], mpp: float) -> list[Area]:
    """Return the area of each class, then of all tissue, from the pixels (256,) of a map of ``mpp`` µm a pixel."""
    tissue = int(counts[: len(classes)].sum())
    pixels = [*zip(classes, counts.tolist(), strict=False), (TISSUE, tissue)]
    return [
        Area(name, count, count * mpp**2 / 1e6, count / tissue if tissue else float("nan"))
        for name, count in pixels
    ]


def to_csv(found: Sequence[Area]) -> bytes:
    """Return areas as a table: class, pixels, mm2, share (empty where there is no tissue)."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(["class", "pixels", "mm2", "share"])
    for area in found:
        share = "" if area.share != area.share else f"{area.share:.6f}"
        writer.writerow([area.name, area.pixels, f"{area.mm2:.6f}", share])
    return text.getvalue().encode()
