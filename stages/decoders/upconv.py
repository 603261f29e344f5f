"""Bilinear x2 upsampling, 3x3 convolution and ReLU as one operation, exactly, at a quarter of the arithmetic.

Bilinear x2 upsampling is zero-stuffing by 2 followed by the taps ``b = [1, 3, 3, 1] / 4`` along each axis, and
correlations commute, so ``conv3x3(W) o up2 = blur(b x b) o conv_transpose(W flipped, stride 2)``: nine products of
D x D for each *low-resolution* pixel, where upsampling first needs 36.

Only the border does not commute, since the textbook's convolution meets zeros outside of the upsampled map. Along
one axis with samples ``x[0..L-1]`` let ``z[0..2L]`` be the transposed convolution of ``x`` alone, and
``a = W[0] x[0]``, ``e = W[2] x[L-1]`` the two products that the zeros take away. Then blurring the sequence
``[z[1] - 4a, z[0] + a, z[1], ..., z[2L-1], z[2L] + e, z[2L-1] - 4e]`` yields the textbook's 2L outputs to the last
term. In two dimensions the same holds along each axis, so the extended map has nine pieces: the transposed
convolution itself, four strips and four corners.
"""

from __future__ import annotations

from itertools import product
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.grad import conv2d_weight

from stages.decoders.blur import blur_gradients, rectified_blur
from store.errors import InputError

UpConvMode = Literal["fast", "textbook", "auto"]

_WORKSPACE = 9 << 18  # elements gathered at once for the weight gradient: stays inside the last-level cache
_TEMPORARY = 1 << 23  # elements of an output map that are worked on at once


class _Piece(NamedTuple):
    """Along one axis: which samples meet which taps, and where the products lie in the extended map."""

    source: slice
    taps: slice
    place: slice


_AXIS = (
    _Piece(slice(0, 1), slice(2, 3), slice(0, 1)),
    _Piece(slice(None), slice(None), slice(1, -1)),
    _Piece(slice(-1, None), slice(0, 1), slice(-1, None)),
)
_RIM = [pieces for pieces in product(_AXIS, _AXIS) if pieces != (_AXIS[1], _AXIS[1])]
_ENDS = ((0, 1, 2), (-1, -2, -3))  # the outermost, second and third sample of either end of an axis


def textbook_upconv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Upsample, convolve and rectify in the three steps of the paper (section 2.3, Eq. 4).

    ``x`` is (B, D, h, w), ``weight`` (E, D, 3, 3), ``bias`` (E,); returns (B, E, 2h, 2w) of the same dtype.
    """
    up = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    return F.relu(F.conv2d(up, weight, bias, padding=1))


def fast_upconv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Compute what :func:`textbook_upconv` does without ever holding an upsampled map.

    Same shapes, any floating dtype and device. Equal to the textbook up to rounding; differentiable once. Kept for
    the backward pass are ``x`` and the output. Inside an autocast region it runs in the region's dtype.
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return _apply(x.to(dtype), weight.to(dtype), bias.to(dtype))
    return _apply(x, weight, bias)


def _apply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _FastUpConv.apply(x, weight, bias)
    return result


def _transposed_taps(weight: torch.Tensor) -> torch.Tensor:
    """Return the (D, E, 3, 3) weight of the transposed convolution that belongs to ``weight`` (E, D, 3, 3)."""
    return weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)


class _FastUpConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        taps = _transposed_taps(weight)
        batch, _, h, w = x.shape
        portions = _portions(batch, len(bias), 2 * h, 2 * w)
        if len(portions) == 1:
            y = rectified_blur(_bordered_map(x, taps), bias)
        else:
            y = _empty(x, batch, len(bias), 2 * h, 2 * w)
            for tiles in portions:
                rectified_blur(_bordered_map(x[tiles], taps), bias, out=y[tiles])
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        channels = y.shape[1]
        # float32 sums for bfloat16 too: hundreds of partial products are added into each entry
        wide = torch.promote_types(weight.dtype, torch.float32)
        dbias = torch.zeros(channels, dtype=wide, device=weight.device)
        dtaps = torch.zeros((3, 3, *weight.shape[:2]), dtype=wide, device=weight.device)
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        taps = _transposed_taps(weight)
        for tiles in _portions(*y.shape):
            dz, sums = blur_gradients(grad[tiles], y[tiles], wide)
            dbias += sums
            for axis, (outer, rim, inside) in product((2, 3), _ENDS):
                edge = dz.select(axis, outer)
                dz.select(axis, inside).add_(edge)
                edge.mul_(-4).add_(dz.select(axis, rim))
            if dx is not None:
                dx[tiles] = _input_gradient(dz, taps)
            if ctx.needs_input_grad[1]:
                _add_weight_gradient(dtaps, dz, x[tiles])
        dweight = dtaps.flip(0, 1).permute(2, 3, 0, 1).to(weight.dtype)
        return dx, dweight if ctx.needs_input_grad[1] else None, dbias.to(weight.dtype)


def _portions(batch: int, channels: int, h: int, w: int) -> list[slice]:
    """Cut a batch of output maps into runs of tiles whose temporaries stay small beside what must be kept anyway."""
    at_once = max(1, _TEMPORARY // (channels * h * w))
    return [slice(start, start + at_once) for start in range(0, batch, at_once)]


def _bordered_map(x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """Return the map (B, E, 2h + 3, 2w + 3) whose blur is the textbook's convolution."""
    z = _extended_map(x, taps)
    for axis, (outer, rim, inside) in product((2, 3), _ENDS):
        edge = z.select(axis, outer)
        z.select(axis, rim).add_(edge)
        edge.mul_(-4).add_(z.select(axis, inside))
    return z


def _empty(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _extended_map(x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """Return the nine pieces at their places, (B, E, 2h + 3, 2w + 3)."""
    # Zeros around the map make the library write the largest piece where it belongs.
    padded = _empty(x, *x.shape[:2], x.shape[2] + 2, x.shape[3] + 2)
    for axis, end in product((2, 3), (0, -1)):
        padded.select(axis, end).zero_()
    padded[:, :, 1:-1, 1:-1] = x
    z = F.conv_transpose2d(padded, taps, stride=2, padding=1)
    for row, column in _RIM:
        z[:, :, row.place, column.place] = F.conv_transpose2d(
            x[:, :, row.source, column.source], taps[:, :, row.taps, column.taps], stride=2
        )
    return z


def _input_gradient(dz: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """Return the adjoint of :func:`_extended_map` in ``x``, (B, D, h, w)."""
    dx = F.conv2d(dz, taps, stride=2, padding=1)[:, :, 1:-1, 1:-1]
    for row, column in _RIM:
        dx[:, :, row.source, column.source] += F.conv2d(
            dz[:, :, row.place, column.place], taps[:, :, row.taps, column.taps], stride=2
        )
    return dx


def _add_weight_gradient(dtaps: torch.Tensor, dz: torch.Tensor, x: torch.Tensor) -> None:
    """Add the adjoint of :func:`_extended_map` in the taps to ``dtaps``, (3, 3, E, D)."""
    for row, column in product(_AXIS, _AXIS):
        part = dtaps[row.taps, column.taps]
        part += _tap_products(dz[:, :, row.place, column.place], x[:, :, row.source, column.source], part)


def _tap_products(dz: torch.Tensor, x: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Return sum over batch and pixels of ``dz[:, :, 2r + i, 2c + j] x[:, :, r, c]`` as (i, j, E, D)."""
    rows, columns, wide_out, wide_in = part.shape
    if x.device.type != "cpu":
        taps = x.new_empty((wide_in, wide_out, rows, columns))
        gradient: torch.Tensor = torch.ops.aten.convolution_backward(
            x, dz, taps, None, [2, 2], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
        )[1]
        return gradient.permute(2, 3, 1, 0)
    batch, _, h, w = x.shape
    pixels, samples = x.permute(0, 2, 3, 1), dz.permute(0, 2, 3, 1)
    step_b, step_r, step_c, step_d = samples.stride()
    taps_of = samples.as_strided(
        (batch, h, w, rows, columns, wide_out), (step_b, 2 * step_r, 2 * step_c, step_r, step_c, step_d)
    )
    line = w * rows * columns * wide_out
    at_once = max(1, min(batch, _WORKSPACE // (h * line)))
    lines = h if at_once > 1 else max(1, min(h, _WORKSPACE // line))
    total = part.new_zeros((rows * columns * wide_out, wide_in))
    space = x.new_empty(at_once * lines * line)
    for b, r in product(range(0, batch, at_once), range(0, h, lines)):
        block = taps_of[b : b + at_once, r : r + lines]
        gathered = space[: block.numel()].view(block.shape).copy_(block)
        total += _products(gathered.flatten(3), pixels[b : b + at_once, r : r + lines])
    return total.view(rows, columns, wide_out, wide_in)


def _products(gathered: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Return sum over batch, rows and columns of ``gathered`` (B, h, w, G) times ``pixels`` (B, h, w, D) as (G, D)."""
    across, wide_in = gathered.shape[-1], pixels.shape[-1]
    if pixels.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return gathered.view(-1, across).t() @ pixels.reshape(-1, wide_in)
    # As the weight gradient of a 1x1 convolution: oneDNN computes that, and makes more of some processors than the
    # library of matrix products. With one thread torch asks it only for dilated ones, which one tap does not feel.
    gradient: torch.Tensor = conv2d_weight(
        pixels.permute(0, 3, 1, 2), (across, wide_in, 1, 1), gathered.permute(0, 3, 1, 2), dilation=2
    )
    return gradient.view(across, wide_in)


class UpConv(nn.Module):
    """One block of the paper's decoder: (B, D, h, w) to (B, D, 2h, 2w), section 2.3, Eq. 4.

    ``mode`` "fast" and "textbook" compute the same function from the same parameters (``conv.weight``,
    ``conv.bias``, those of an ordinary 3x3 convolution). "auto" takes the fast form where :func:`fast_pays`.
    ``InputError`` for any other mode.
    """

    def __init__(self, width: int, mode: UpConvMode = "auto") -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.set_mode(mode)

    def set_mode(self, mode: UpConvMode) -> None:
        """Choose the form to compute with; the function computed stays the same."""
        if mode not in get_args(UpConvMode):
            raise InputError(
                f"unknown upconv mode {mode!r}",
                where="upconv",
                remedy=f"Choose one of {', '.join(get_args(UpConvMode))}.",
            )
        self.mode = mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Upsample twofold, convolve, rectify."""
        fast = self.mode == "fast" or (self.mode == "auto" and fast_pays(*x.shape[1:]))
        compute = fast_upconv if fast else textbook_upconv
        return compute(x, self.conv.weight, cast(torch.Tensor, self.conv.bias))


def fast_pays(width: int, h: int, w: int) -> bool:
    """Return whether the fast form is the quicker one for maps of ``width`` channels and h x w pixels.

    Measured on two CPU cores for widths 8 to 256 and sides 4 to 128: the strips of the border are cheap from 8
    pixels a side on, and the products saved outweigh the fixed cost from ``width**2 * h * w`` = 2**22 on. The batch
    has no say, so that a tile's prediction does not depend on the tiles beside it.
    """
    return min(h, w) >= 8 and width * width * h * w >= 1 << 22
