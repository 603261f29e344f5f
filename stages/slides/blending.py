"""Overlapping windows over a map, and the map that their blended logits make, row by row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from store.errors import InputError

FLOOR = 1e-6  # weight of a window's outermost pixels, which count where no other window lies


@dataclass(frozen=True)
class WindowGrid:
    """Square windows of ``px`` map pixels, ``stride`` apart, that cover a map of ``height`` × ``width``.

    As many as are needed; what they reach beyond the map is spread over both ends. A map of ``px`` has one window.
    """

    height: int
    width: int
    px: int
    stride: int

    @property
    def tops(self) -> list[int]:
        """The first map row of each row of windows; may be negative."""
        return _starts(self.height, self.px, self.stride)

    @property
    def lefts(self) -> list[int]:
        """The first map column of each column of windows; may be negative."""
        return _starts(self.width, self.px, self.stride)


def stride_of(px: int, overlap: float) -> int:
    """Return how far apart windows of ``px`` lie that overlap by a share of their side."""
    if not 0 <= overlap < 1:
        raise InputError(
            f"windows cannot overlap by {overlap:g} of their side", where="overlap", remedy="Give 0 to 0.9."
        )
    return max(1, round(px * (1 - overlap)))


def taper(px: int, margin: float) -> NDArray[np.float32]:
    """Return the weights (px, px) of a window's pixels: a Hann window along each axis.

    It reaches 0 at ``margin`` pixels from the window's edge, half a patch, beyond which a decoder has no token to
    interpolate with; there, and nowhere else, the weight is ``FLOOR``.
    """
    place = (np.arange(px) + 0.5 - margin) / (px - 2 * margin)
    hann = np.where((place > 0) & (place < 1), np.sin(math.pi * place) ** 2, 0.0)
    line = np.maximum(hann, FLOOR)
    return np.asarray(np.outer(line, line), np.float32)


class Canvas:
    """Sums of weighted logits over all columns of some rows of a map.

    Windows are added in the order of their rows and columns, so that every sum has one order, whatever the batches and
    wherever the work was taken up again.
    """

    def __init__(self, classes: int, width: int, rows: int, weights: NDArray[np.float32]) -> None:
        self._sums = np.zeros((classes, rows, width), np.float32)
        self._weight = np.zeros((rows, width), np.float32)
        self._weights = weights
        self.top = 0

    @property
    def bottom(self) -> int:
        """The first map row below."""
        return self.top + self._sums.shape[1]

    def add(self, logits: NDArray[np.float32], top: int, left: int) -> None:
        """Add the logits (C, px, px) of the window whose corner is at map pixel (top, left), as far as it lies here."""
        px = logits.shape[-1]
        first, last = max(top, self.top), min(top + px, self.bottom)
        begin, end = max(left, 0), min(left + px, self._sums.shape[2])
        if first >= last or begin >= end:
            return
        inside = (slice(first - top, last - top), slice(begin - left, end - left))
        here = (slice(first - self.top, last - self.top), slice(begin, end))
        weights = self._weights[inside]
        self._sums[(slice(None), *here)] += weights * logits[(slice(None), *inside)]
        self._weight[here] += weights

    def take(self, rows: int) -> NDArray[np.float32]:
        """Return the blended logits (C, rows, W) of the uppermost rows, 0 where no window was, and go on below them."""
        weight = self._weight[:rows]
        done = self._sums[:, :rows] / np.where(weight > 0, weight, 1)
        for array in (self._sums, self._weight):
            for row in range(0, array.shape[-2], rows):  # piece by piece: at once would take a copy of it all
                rest = array[..., row + rows : row + 2 * rows, :]
                array[..., row : row + rest.shape[-2], :] = rest
            array[..., -rows:, :] = 0
        self.top += rows
        return np.asarray(done, np.float32)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probabilities (C, …) of logits (C, …)."""
    risen = np.exp(logits - logits.max(axis=0))
    return np.asarray(risen / risen.sum(axis=0))


def _starts(length: int, px: int, stride: int) -> list[int]:
    count = 1 + max(0, -(-(length - px) // stride))
    beyond = px + (count - 1) * stride - length
    first = -(beyond // 2) if beyond >= 0 else 0
    return [first + number * stride for number in range(count)]
