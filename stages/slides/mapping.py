"""From a slide to its map: windows are read, encoded, decoded and blended, and the map comes out in bands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.slides.blending import Canvas, WindowGrid, softmax
from stages.slides.scaled import ScaledSlide
from stages.slides.tissue import Tissue
from stages.slides.tokens import Tokens
from stages.tiles.dataset import IGNORE

BAND_ROWS = 256  # rows of the map that are finished, and kept, together
_COLUMNS = 4096  # that are turned into classes at a time, since it takes several copies of them

Decode = Callable[[NDArray[np.float16]], NDArray[np.float32]]
Progress = Callable[[int, int], None]  # windows done, windows to do


@dataclass(frozen=True, eq=False)
class Band:
    """Rows of the map from ``top`` on: ``labels`` (rows, W) uint8 classes, ``IGNORE`` where there is no tissue.

    ``probabilities`` (C, rows, W) float16, 0 where there is no tissue; None where nobody asked for them.
    """

    top: int
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float16] | None


@dataclass(frozen=True, eq=False)
class Mapper:
    """All that a map follows from.

    ``tokens`` gives windows their grids, ``decode`` turns a grid (d, h, w) into logits (C, px, px); ``weights``
    (px, px) blend them (:func:`stages.slides.blending.taper`).
    """

    slide: ScaledSlide
    tissue: Tissue
    grid: WindowGrid
    weights: NDArray[np.float32]
    classes: int
    tokens: Tokens
    decode: Decode
    probabilities: bool = False
    threads: int = 2

    @property
    def bands(self) -> int:
        """How many bands the map has."""
        return -(-self.slide.height // BAND_ROWS)

    def windows(self) -> list[list[int]]:
        """Return for each row of windows the left ends of those that hold tissue."""
        return [
            [left for left in self.grid.lefts if self.tissue.any_in(top, left, self.grid.px)]
            for top in self.grid.tops
        ]

    def run(self, start: int = 0, on_progress: Progress | None = None) -> Iterator[Band]:
        """Yield the bands from number ``start`` on; a band does not depend on where the work began.

        Memory holds the logits of one band and one row of windows, over the map's width. Raises
        :class:`store.errors.InputError` where the slide cannot be read.
        """
        windows = self.windows()
        top = start * BAND_ROWS
        first = next(
            (i for i, at in enumerate(self.grid.tops) if at + self.grid.px > top), len(self.grid.tops)
        )
        canvas = Canvas(self.classes, self.slide.width, BAND_ROWS + self.grid.px, self.weights)
        canvas.top = top
        total = sum(map(len, windows))
        done = sum(map(len, windows[:first]))
        with ThreadPoolExecutor(self.threads, "read") as pool:
            cells = _Cells(self.slide, self.grid, pool)
            try:
                for row in range(first, len(windows)):
                    at = self.grid.tops[row]
                    while canvas.top + BAND_ROWS <= at:
                        yield self._band(canvas)
                    pixels = cells.row(row, windows)
                    names = [f"{self.slide.source.path.name}@{at},{left}" for left in windows[row]]
                    grids = self.tokens.of(pixels, names)
                    for left, grid in zip(windows[row], grids, strict=True):
                        canvas.add(self.decode(grid), at, left)
                        done += 1
                        if on_progress is not None:
                            on_progress(done, total)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        while canvas.top < self.slide.height:
            yield self._band(canvas)

    def _band(self, canvas: Canvas) -> Band:
        top, rows = canvas.top, min(BAND_ROWS, self.slide.height - canvas.top)
        logits = canvas.take(BAND_ROWS)[:, :rows]
        tissue = self.tissue.rows(top, top + rows, self.slide.width)
        labels = np.full((rows, self.slide.width), IGNORE, np.uint8)
        shares = np.zeros(logits.shape, np.float16) if self.probabilities else None
        for begin in range(0, self.slide.width, _COLUMNS):
            here = slice(begin, begin + _COLUMNS)
            if not tissue[:, here].any():
                continue
            labels[:, here] = np.where(tissue[:, here], logits[..., here].argmax(axis=0), IGNORE)
            if shares is not None:
                shares[..., here] = softmax(logits[..., here]) * tissue[:, here]
        return Band(top, labels, shares)


class _Cells:
    """Squares of ``stride`` pixels that windows are put together from, so that each is read once, and in advance."""

    def __init__(self, slide: ScaledSlide, grid: WindowGrid, pool: ThreadPoolExecutor) -> None:
        self._slide, self._grid, self._pool = slide, grid, pool
        self._side = -(-grid.px // grid.stride)
        self._found: dict[tuple[int, int], Future[NDArray[np.uint8]]] = {}

    def row(self, row: int, windows: Sequence[Sequence[int]]) -> list[NDArray[np.uint8]]:
        """Return the pixels (px, px, 3) of the windows of a row, and begin with those of the next."""
        for gone in [place for place in self._found if place[0] < row]:
            self._found.pop(gone).cancel()
        for wanted in range(row, min(row + 2, len(windows))):
            for left in windows[wanted]:
                for place in self._places(wanted, left):
                    if place not in self._found:
                        self._found[place] = self._pool.submit(self._read, *place)
        return [self._window(row, left) for left in windows[row]]

    def _places(self, row: int, left: int) -> Iterator[tuple[int, int]]:
        column = (left - self._grid.lefts[0]) // self._grid.stride
        for down in range(self._side):
            for along in range(self._side):
                yield row + down, column + along

    def _read(self, row: int, column: int) -> NDArray[np.uint8]:
        stride = self._grid.stride
        return self._slide.square(
            self._grid.tops[0] + row * stride, self._grid.lefts[0] + column * stride, stride
        )

    def _window(self, row: int, left: int) -> NDArray[np.uint8]:
        squares = [self._found[place].result() for place in self._places(row, left)]
        lines = [
            np.concatenate(squares[first : first + self._side], axis=1)
            for first in range(0, len(squares), self._side)
        ]
        return np.ascontiguousarray(np.concatenate(lines)[: self._grid.px, : self._grid.px])
