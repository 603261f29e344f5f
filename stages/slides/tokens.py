"""The token grids of windows: encoded now, or kept in a feature store and read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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

    A slide makes a part a row of windows, so that a store may have tens of thousands of them: those that were found
    whole once are not looked at again.
    """

    def __init__(self, batches: Callable[[], Batches], store: GridStore) -> None:
        self._encoded = EncodedTokens(batches)
        self._store = store
        self._readers: dict[str, GridReader] = {}  # by the sha256 of the windows that they have
        self._whole: set[str] = set()  # names of parts
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
        if not self._readers:
            self._look()
        before = self.encoded
        missing = [row for digest, row in rows.items() if digest not in self._readers]
        if missing:
            self._make(missing, pixels)
            self._look()
        for digest, window, name in zip(digests, windows, names, strict=True):
            if (reader := self._readers.get(digest)) is not None:
                yield reader.read(ViewKey(digest, 0))
            else:
                yield from self._encoded.of([window], [name])
        self.kept += len(windows) - (self.encoded - before)

    def _make(self, rows: Sequence[ViewRow], pixels: Mapping[str, Pixels]) -> None:
        """Encode what is not claimed by another process into the store; ``pixels`` by their sha256."""
        for task in self._store.plan(rows, can_make=lambda row: row.tile in pixels, besides=self._whole):
            with self._store.lease(task) as mine:
                if mine:
                    windows, names = [pixels[row.tile] for row in task.rows], [row.name for row in task.rows]
                    self._store.write(task, ((grid, None) for grid in self._encoded.of(windows, names)))

    def _look(self) -> None:
        """Take in what the parts hold that were not whole, or not there, when they were last looked at."""
        reader = self._store.reader(besides=self._whole)
        self._whole |= reader.whole_parts()
        for key in reader.views():
            self._readers.setdefault(key.tile, reader)


def kept_identity(encoder: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the grids of a cache of windows beside their pixels: the encoder's identity."""
    return {"encoder": encoder, "kept": KEPT_AS}


def kept_spec(shape: tuple[int, int, int]) -> GridSpec:
    """Return what such a cache keeps of a window: its grid (d, h, w) as it is, never in the int8 form.

    So a slide's map is the same with and without the cache.
    """
    return GridSpec("tokens", shape, "float16", ("d", "h", "w"))
