"""Views: a tile under one draw of the augmentation, bit for bit the same wherever and whenever it is rendered.

Every encoder must see the same pixels, also when two people extract on different machines, and extraction checks
that by hash. Floating-point resampling cannot promise it: the same ``torchvision`` affine differs in a few pixels
a view between processors with and without AVX. So positions are fixed-point integers, and every sum is a sum of
integers (or a float64 sum of integers far below 2**53, which is exact in any order).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.tiles.dataset import IGNORE
from stages.tiles.tiling import Tile
from store.identity import canonical_json

REVISION = 1  # of the drawing and rendering rules: raise it whenever a view's pixels would change

_POSITION_BITS = 32  # fractional bits of a position in source pixels
_WEIGHT_BITS = 6  # of a bilinear weight: positions are rounded down to 1/64 of a source pixel
_LANE = 21  # bits a channel has in a packed pixel: 8 of value, 2 * 6 of weights, 1 spare
_COLOUR_BITS = 16
_BAND = 32  # rows of a view that are worked on at a time: their positions and pixels stay in the processor's cache
_GRAY = (299, 587, 114)  # per mille, ITU-R BT.601


@dataclass(frozen=True)
class Recipe:
    """How views are drawn. Strengths follow torchvision's ``RandomAffine`` and ``ColorJitter``.

    ``degrees``: largest rotation; ``translate``: largest shift as a share of the tile's side; ``scale``: range of
    the zoom (above 1 magnifies); ``shear``: largest shear in degrees along x; ``flip``: mirror each axis with
    probability ½; ``brightness``, ``contrast``, ``saturation``: factors drawn from [1 − v, 1 + v]; ``hue``: rotation
    about the grey axis, drawn from [−v, v] turns. ``seed``: another seed, other views.
    """

    degrees: float = 180.0
    translate: float = 0.1
    scale: tuple[float, float] = (0.8, 1.25)
    shear: float = 10.0
    flip: bool = True
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    seed: int = 0

    def identity(self) -> dict[str, Any]:
        """Return everything that decides a view's pixels, as JSON-able values."""
        return {**asdict(self), "scale": list(self.scale), "revision": REVISION}


@dataclass(frozen=True)
class Draw:
    """One draw of the augmentation; the defaults leave the tile as it is.

    ``angle`` and ``shear`` in degrees, ``shift`` (y, x) as a share of the tile's side, ``hue`` in turns.
    """

    angle: float = 0.0
    zoom: float = 1.0
    shear: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    mirror: tuple[bool, bool] = (False, False)
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0

    def matrix(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the 2×2 matrix that takes (x, y) offsets from the view's centre to offsets in the tile."""
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        slant = math.tan(math.radians(self.shear))
        flip_y, flip_x = (-1.0 if flag else 1.0 for flag in self.mirror)
        return (
            (cos * flip_x / self.zoom, (cos * slant - sin) * flip_y / self.zoom),
            (sin * flip_x / self.zoom, (sin * slant + cos) * flip_y / self.zoom),
        )


def draw(recipe: Recipe, tile_key: str, view: int) -> Draw:
    """Return the draw of ``view`` of the tile named by ``tile_key``: a pure function of its arguments.

    View 0 is the tile itself. The uniforms come from SHAKE-256, so they depend on no library's generator and one
    view's draw says nothing about another's.
    """
    if view == 0:
        return Draw()
    stream = hashlib.shake_256(canonical_json([recipe.seed, tile_key, view])).digest(8 * 11)
    uniform = iter(np.frombuffer(stream, "<u8") / 2.0**64)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(next(uniform))

    low, high = recipe.scale
    return Draw(
        angle=between(-recipe.degrees, recipe.degrees),
        zoom=low * (high / low) ** between(0.0, 1.0),
        shear=between(-recipe.shear, recipe.shear),
        shift=(between(-recipe.translate, recipe.translate), between(-recipe.translate, recipe.translate)),
        mirror=(between(0, 1) < 0.5 and recipe.flip, between(0, 1) < 0.5 and recipe.flip),
        brightness=between(1 - recipe.brightness, 1 + recipe.brightness),
        contrast=between(1 - recipe.contrast, 1 + recipe.contrast),
        saturation=between(1 - recipe.saturation, 1 + recipe.saturation),
        hue=between(-recipe.hue, recipe.hue),
    )


def render(
    image: NDArray[np.uint8], mask: NDArray[np.uint8] | None, tile: Tile, how: Draw
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Render one view of ``tile`` from its source image, with one resampling, and its mask under the same draw.

    ``image``: (H, W, 3) uint8 RGB source; ``mask``: (H, W) uint8 classes of the source, or None. Returns the view
    (px, px, 3) uint8 and its mask (px, px) uint8 or None. A view pixel is the mean of n×n bilinear samples, n being the
    number of source pixels a view pixel spans, so that shrinking does not alias; its class is that of the source pixel
    under its centre. Outside the source image the view goes on by reflection and the mask is ``IGNORE``.
    """
    span = tile.step / how.zoom
    samples = max(1, round(span))
    position = _Positions(tile, how)
    region = _Region(image.shape[:2], *position.bounds())
    pixels = _sample(region.of(image), region, position, samples)
    if how.brightness != 1 or how.contrast != 1 or how.saturation != 1 or how.hue != 0:
        pixels = _recolour(pixels, how)
    if mask is None:
        return pixels, None
    y, x = position.grid(1, 0, 0)
    source = np.where(region.inside(), region.of(mask), np.uint8(IGNORE))
    return pixels, source[(y >> _POSITION_BITS) - region.top, (x >> _POSITION_BITS) - region.left]


def view_sha256(pixels: NDArray[np.uint8]) -> str:
    """Return the sha256 (hex) of a view's (px, px, 3) uint8 pixels, by which every encoder's input is checked."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


class _Positions:
    """Fixed-point source positions (32 fractional bits, pixel edges at integers) of a view's samples."""

    def __init__(self, tile: Tile, how: Draw) -> None:
        (xx, xy), (yx, yy) = how.matrix()
        self.px = tile.px
        self.coefficients = tuple(tile.step * value for value in (xx, xy, yx, yy))
        shift_y, shift_x = (share * tile.px * tile.step for share in how.shift)
        self.centre = (_fixed(tile.centre[0] + shift_y), _fixed(tile.centre[1] + shift_x))

    def grid(
        self, samples: int, row: int, column: int, rows: slice = slice(None)
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions (y, x), each (rows, px) int64, of sample (row, column) of samples×samples a view pixel."""
        xx, xy, yx, yy = (_fixed(value / (2 * samples)) for value in self.coefficients)
        # twice the offset from the view's centre, in samples: odd integers, symmetric about 0
        index = 2 * samples * np.arange(self.px, dtype=np.int64) + 1 - samples * self.px
        u, v = index[None, :] + 2 * column, index[rows, None] + 2 * row
        return self.centre[0] + yx * u + yy * v, self.centre[1] + xx * u + xy * v

    def bounds(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right (exclusive) of the source pixels that any sample of the view touches."""
        xx, xy, yx, yy = self.coefficients
        reach_y, reach_x = (math.ceil(self.px / 2 * (abs(a) + abs(b))) + 2 for a, b in ((yx, yy), (xx, xy)))
        y, x = (value >> _POSITION_BITS for value in self.centre)
        return y - reach_y, x - reach_x, y + reach_y + 1, x + reach_x + 1


class _Region:
    """The part of a source that a view needs, continued by reflection where it leaves the source."""

    def __init__(self, size: tuple[int, ...], top: int, left: int, bottom: int, right: int) -> None:
        self.top, self.left = top, left
        self.rows, self.columns = np.arange(top, bottom), np.arange(left, right)
        self.size = size

    def of(self, source: NDArray[np.uint8]) -> NDArray[np.uint8]:
        for axis, (index, n) in enumerate(zip((self.rows, self.columns), self.size, strict=True)):
            folded = index % (2 * n)
            source = source.take(np.minimum(folded, 2 * n - 1 - folded), axis)
        return source

    def inside(self) -> NDArray[np.bool_]:
        rows, columns = (
            (index >= 0) & (index < n) for index, n in zip((self.rows, self.columns), self.size, strict=True)
        )
        return rows[:, None] & columns[None, :]


def _fixed(value: float) -> int:
    return round(value * (1 << _POSITION_BITS))


def _sample(
    source: NDArray[np.uint8], region: _Region, position: _Positions, samples: int
) -> NDArray[np.uint8]:
    """Mean of samples×samples bilinear samples a view pixel, three channels at once in the lanes of one int64."""
    packed = source[..., 2].astype(np.int64)
    for channel in (1, 0):
        packed <<= _LANE
        packed |= source[..., channel]
    packed = packed.ravel()
    width = source.shape[1]
    weight = samples * samples << (2 * _WEIGHT_BITS)
    pixels = np.empty((position.px, position.px, 3), np.uint8)
    for top in range(0, position.px, _BAND):
        rows = slice(top, min(top + _BAND, position.px))
        total = np.zeros((3, rows.stop - top, position.px), np.int64)
        for row in range(samples):
            for column in range(samples):
                mixed = _bilinear(packed, width, region, *position.grid(samples, row, column, rows))
                for channel in range(3):
                    total[channel] += (mixed >> (channel * _LANE)) & ((1 << _LANE) - 1)
        total += weight // 2
        total //= weight
        pixels[rows] = np.moveaxis(total, 0, -1)
    return pixels


def _bilinear(
    packed: NDArray[np.int64], width: int, region: _Region, y: NDArray[np.int64], x: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Interpolate packed pixels at positions (y, x), times 2 ** (2 * _WEIGHT_BITS); the positions are overwritten."""
    half = 1 << (_POSITION_BITS - 1)  # pixel centres lie at half-integers
    y -= half + (region.top << _POSITION_BITS)
    x -= half + (region.left << _POSITION_BITS)
    corner = y >> _POSITION_BITS
    corner *= width
    corner += x >> _POSITION_BITS
    for axis in (y, x):
        axis >>= _POSITION_BITS - _WEIGHT_BITS
        axis &= (1 << _WEIGHT_BITS) - 1
    above, below = (_between(packed, corner + step, x) for step in (0, width))
    below -= above
    below *= y
    above <<= _WEIGHT_BITS
    above += below
    return above


def _between(packed: NDArray[np.int64], at: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the mean of each pixel and its right neighbour, times 2 ** _WEIGHT_BITS, the latter weighted by ``x``."""
    # Differences of lanes borrow from each other, and the sum gives it back.
    left = packed.take(at)
    at += 1
    right = packed.take(at)
    right -= left
    right *= x
    left <<= _WEIGHT_BITS
    left += right
    return left


def _recolour(pixels: NDArray[np.uint8], how: Draw) -> NDArray[np.uint8]:
    """Brightness, contrast about the mean grey, saturation and hue as one fixed-point affine map of RGB."""
    gray = np.array(_GRAY) / 1000
    saturate = how.saturation * np.eye(3) + (1 - how.saturation) * gray[None, :]
    colour = _hue_rotation(how.hue) @ saturate * (how.contrast * how.brightness)
    fixed = np.rint(colour * (1 << _COLOUR_BITS)).T
    lift = round((1 - how.contrast) * how.brightness * (1 << _COLOUR_BITS))
    sums = pixels.reshape(len(pixels), -1).sum(axis=0, dtype=np.int64).reshape(-1, 3).sum(axis=0)
    offset = lift * sum(weight * int(value) for weight, value in zip(_GRAY, sums, strict=True))
    offset = offset // (1000 * pixels.shape[0] * pixels.shape[1]) + (1 << (_COLOUR_BITS - 1))
    recoloured = np.empty_like(pixels)
    for top in range(0, len(pixels), _BAND):
        # Whole numbers far below 2**53: the products of doubles are exact.
        mixed = (pixels[top : top + _BAND].astype(np.float64) @ fixed).astype(np.int64)
        mixed += offset
        mixed >>= _COLOUR_BITS
        recoloured[top : top + _BAND] = np.clip(mixed, 0, 255, out=mixed)
    return recoloured


def _hue_rotation(turns: float) -> NDArray[np.float64]:
    """The RGB matrix that turns chroma by ``turns`` in the I-Q plane of YIQ and keeps luma (BT.601)."""
    to_yiq = np.array(
        [
            [0.299, 0.587, 0.114],
            [0.595716, -0.274453, -0.321263],
            [0.211456, -0.522591, 0.311135],
        ]
    )
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return np.asarray(np.linalg.inv(to_yiq) @ turn @ to_yiq)
