"""Counts of runs as CSV: the same columns, texts and line ends in every file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.metrics import Counts, pooled_dice
from store.disk_errors import storage_errors
from store.durable import put_replacing


def by_class(head: Mapping[str, Any], classes: Sequence[str], counts: Counts) -> Iterator[dict[str, Any]]:
    """Yield ``head`` with the pooled Dice (empty where the class is nowhere) and counts of each class.

    ``counts``: (N, C, 3) of N tiles or images.
    """
    dice = pooled_dice(counts)
    for index, name in enumerate(classes):
        value = "" if math.isnan(dice[index]) else repr(float(dice[index]))
        yield {**head, "class": name, "dice": value, **_counts(counts.sum(axis=0)[index])}


def by_tile(
    head: Mapping[str, Any], classes: Sequence[str], tiles: Iterable[str], counts: Counts
) -> Iterator[dict[str, Any]]:
    """Yield ``head`` with the counts of each class of each of ``tiles``; ``counts``: (tiles, C, 3)."""
    for tile, counted in zip(tiles, counts, strict=True):
        for index, name in enumerate(classes):
            yield {**head, "class": name, "tile": tile, **_counts(counted[index])}


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of the same columns, of which there has to be one. Raises :class:`store.errors.StorageError`."""
    source = iter(rows)
    first = next(source)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(first), lineterminator="\r\n")
    writer.writeheader()
    writer.writerow(first)
    writer.writerows(source)
    with storage_errors(path):
        put_replacing(path, text.getvalue().encode())


def _counts(counts: NDArray[np.int64]) -> dict[str, int]:
    return dict(zip(("intersection", "prediction", "truth"), map(int, counts), strict=True))
