"""Encoding a few views anew and comparing them with what a cache holds of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from stages.batching import Batches
from stages.tiles.plan import PlannedView, ViewSource
from stages.tiles.views import view_sha256
from store import GridReader


@dataclass(frozen=True)
class Tolerance:
    """How far a view that is encoded again may be from its stored grid.

    ``l2``: norm of the difference over the norm of the new grid; ``cosine``: of the token (d,) that agrees least.
    """

    l2: float
    cosine: float


# About seven times what one GlaS image differs by between a 16-bit and the float32 pass of a ViT-S of 12 blocks
# (float16 0.001, bfloat16 0.007): deeper encoders round more often, and devices order their sums differently. Another
# image, another block or other weights differ by 0.3 and more.
_TOLERANCES: Final = {
    "float32": Tolerance(0.005, 0.9999),
    "float16": Tolerance(0.01, 0.9995),
    "bfloat16": Tolerance(0.05, 0.995),
}
_INT8: Final = Tolerance(0.01, 0.999)  # int8 alone: 0.004 on the same images


def tolerance_of(identity: dict[str, Any]) -> Tolerance:
    """Return what a cache of this identity may differ by: by the precision it was computed in and its encoding.

    An encoder that does not say its precision (a plug-in) is held to float16.
    """
    computed = _TOLERANCES.get(str(identity["encoder"].get("compute_dtype")), _TOLERANCES["float16"])
    if identity.get("encoding") != "int8":
        return computed
    return Tolerance(computed.l2 + _INT8.l2, min(computed.cosine, _INT8.cosine))


@dataclass(frozen=True)
class Rechecked:
    """One view encoded again. ``l2`` and ``cosine`` are as in :class:`Tolerance`.

    ``pixels`` says whether the view was rendered as the one that was encoded; where it was not, nothing is compared.
    """

    planned: PlannedView
    pixels: bool
    l2: float
    cosine: float

    def within(self, tolerance: Tolerance) -> bool:
        """Whether the view is the one stored, up to ``tolerance``."""
        return self.pixels and self.l2 <= tolerance.l2 and self.cosine >= tolerance.cosine


def sample(views: Sequence[PlannedView], count: int, seed: int = 0) -> list[PlannedView]:
    """Return at most ``count`` of ``views``, every second one augmented, spread evenly over the tiles.

    The choice follows from ``seed``. Where there are no augmented views left (or no plain ones), the others are taken.
    """
    chance = random.Random(seed)
    tiles: dict[str, dict[bool, list[PlannedView]]] = {}
    for view in views:
        tiles.setdefault(view.tile.key, {True: [], False: []})[view.view > 0].append(view)
    order = list(tiles.values())
    chance.shuffle(order)
    taken = [0] * len(order)
    chosen: list[PlannedView] = []
    while len(chosen) < min(count, len(views)):
        due = len(chosen) % 2 == 1
        if not any(kinds[due] for kinds in order):
            due = not due
        # a tile that was taken least, and of these one that has nothing of the other kind to give
        *_, at = min((taken[n], bool(kinds[not due]), n) for n, kinds in enumerate(order) if kinds[due])
        taken[at] += 1
        kind = order[at][due]
        chosen.append(kind.pop(chance.randrange(len(kind))))
    return chosen


def recheck(
    views: Sequence[PlannedView], source: ViewSource, reader: GridReader, batches: Batches
) -> Iterator[Rechecked]:
    """Render and encode each view and compare it with its grid in ``reader``; raises what reading raises."""
    for planned in views:
        pixels = source.pixels(planned)
        recorded = reader.row(planned.key).pixels
        if recorded not in ("", view_sha256(pixels)):
            yield Rechecked(planned, False, float("nan"), float("nan"))
            continue
        grid = batches.encode(torch.from_numpy(pixels[np.newaxis]).permute(0, 3, 1, 2))[0]
        l2, cosine = compared(grid, reader.read(planned.key))
        yield Rechecked(planned, True, l2, cosine)


def compared(new: NDArray[Any], stored: NDArray[Any]) -> tuple[float, float]:
    """Return the relative L2 difference of two (d, h, w) grids, and the cosine of the token that agrees least.

    Two tokens that are all zeros agree; one that is zeros beside one that is not does not.
    """
    a, b = (grid.astype(np.float64).reshape(grid.shape[0], -1) for grid in (new, stored))
    norm = float(np.linalg.norm(a))
    distance = float(np.linalg.norm(a - b))
    l2 = distance / norm if norm else (0.0 if distance == 0 else float("inf"))
    sizes = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    same = (a == b).all(axis=0)
    with np.errstate(invalid="ignore"):
        cosines = np.where(
            same, 1.0, np.where(sizes > 0, (a * b).sum(axis=0) / np.maximum(sizes, 1e-300), 0.0)
        )
    return l2, float(cosines.min())
