"""The token grids of windows: encoded now, or kept in a feature store and read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stages.batching import Batches
from stages.tiles.views import view_sha256
from store import GridReader, GridSpec, GridStore, ViewKey, ViewRow
from store.errors import InputError

Pixels = NDArray[np.uint8]
Grid = NDArray[np.float16]
KEPT_AS = "slide-windows"  # what the identity of their cache says they are


class Tokens(Protocol):
    """Gives windows their token grids."""

    @property
    def encoded(self) -> int:
        """How many windows were encoded."""

    @property
    def kept(self) -> int:
        """How many were not: they were in the store, or another has the same pixels."""

    def of(self, windows: Sequence[Pixels], names: Sequence[str]) -> Iterator[Grid]:
        """Yield the grid (d, h, w) float16 of each of ``windows`` (px, px, 3) uint8; ``names`` are for people."""


class EncodedTokens:
    """Encodes every window; see :class:`Tokens`. ``batches`` is asked for when the first window comes."""

    def __init__(self, batches: Callable[[], Batches]) -> None:
        self._batches = batches
        self.encoded = self.kept = 0

    def of(self, windows: Sequence[Pixels], names: Sequence[str]) -> Iterator[Grid]:
        """Yield token grids; batches are formed from the first window on."""
        size = self._batches().size if windows else 1
        for start in range(0, len(windows), size):
            batch = np.stack(windows[start : start + size])
            grids = self._batches().encode(torch.from_numpy(batch).permute(0, 3, 1, 2))
            if not np.isfinite(grids).all():
                raise InputError(
                    f"tokens are beyond what float16 holds, in a window of {', '.join(names[start : start + size])}",
                    where="encoder",
                    remedy="Train and predict with another encoder, or another block of it.",
                )
            yield from grids
            self.encoded += len(batch)


class KeptTokens:
    """Takes the grids of windows from a store, after encoding those it lacks into it; see :class:`Tokens`.

    A grid is known by the sha256 of its window's pixels, so that neither another slide nor another resolution can be
    mistaken for it. What another process is writing just now is encoded, and not kept twice.
    """

    def __init__(self, batches: Callable[[], Batches], store: GridStore) -> None:
        self._encoded = EncodedTokens(batches)
        self._store = store
        self._reader: GridReader | None = None  # kept: a slide makes a part a row of windows
        self.kept = 0

    @property
    def encoded(self) -> int:
        """How many windows were encoded."""
        return self._encoded.encoded

    def of(self, windows: Sequence[Pixels], names: Sequence[str]) -> Iterator[Grid]:
        """Yield token grids, from the store if they are there."""
        digests = [view_sha256(window) for window in windows]
        rows, pixels = {}, {}
        for window, name, digest in zip(windows, names, digests, strict=True):
            rows[digest] = ViewRow(digest, 0, name, digest)
            pixels[digest] = window
        reader = self._store.reader() if self._reader is None else self._reader
        missing = set(reader.missing([row.key for row in rows.values()]))
        before = self.encoded
        if missing:
            wanted = [row for row in rows.values() if row.key in missing]
            for task in self._store.plan(wanted, can_make=lambda row: row.tile in pixels):
                with self._store.lease(task) as mine:
                    if mine:
                        made = self._encoded.of(
                            [pixels[row.tile] for row in task.rows], [row.name for row in task.rows]
                        )
                        self._store.write(task, ((grid, None) for grid in made))
            reader = self._store.reader()
        self._reader = reader
        for digest, window, name in zip(digests, windows, names, strict=True):
            if (key := ViewKey(digest, 0)) in reader:
                yield reader.read(key)
            else:
                yield from self._encoded.of([window], [name])
        self.kept += len(windows) - (self.encoded - before)


def kept_identity(encoder: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the grids of a cache of windows beside their pixels: the encoder's identity."""
    return {"encoder": encoder, "kept": KEPT_AS}


def kept_spec(shape: tuple[int, int, int]) -> GridSpec:
    """Return what such a cache keeps of a window: its grid (d, h, w) as it is, never in the int8 form.

    So a slide's map is the same with and without the cache.
    """
    return GridSpec("tokens", shape, "float16", ("d", "h", "w"))
