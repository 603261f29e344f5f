"""The blur as two kernels for GPUs, each of which goes through memory once.

Libraries compute a depthwise convolution of 4x4 far below what the memory delivers, and bias and ReLU are passes of
their own. The kernels need nothing of the device but loads and stores, and run in Triton's interpreter on a processor.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl

_COLUMNS, _CHANNELS = 8, 128  # of an output row that one program makes; channels lie side by side in memory


@triton.jit  # type: ignore[untyped-decorator]
def _tap(at: Any) -> Any:
    return tl.where((at == 1) | (at == 2), 0.75, 0.25)


@triton.jit  # type: ignore[untyped-decorator]
def _blur_kernel(
    source: Any,
    bias: Any,
    result: Any,
    height: Any,
    width: Any,
    channels: Any,
    offset: tl.constexpr,
    rectify: tl.constexpr,
    double: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """Result (B, height, width, channels) from source (B, height + 3 - 2 * offset, ...), zero outside of itself."""
    line = tl.program_id(0).to(tl.int64)
    row, image = line % height, line // height
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    rows, columns = height + 3 - 2 * offset, width + 3 - 2 * offset
    kept = channel[None, :] < channels
    total = tl.zeros((COLUMNS, CHANNELS), tl.float64 if double else tl.float32)
    for p in range(4):
        from_row = row + p - offset
        for q in range(4):
            from_column = column + q - offset
            inside = (from_row >= 0) & (from_row < rows) & (from_column >= 0) & (from_column < columns)
            at = (image * rows + from_row) * columns + from_column
            value = tl.load(
                source + at[:, None] * channels + channel[None, :], mask=inside[:, None] & kept, other=0.0
            )
            total += value.to(total.dtype) * (_tap(p) * _tap(q))
    if rectify:
        total += tl.load(bias + channel, mask=channel < channels, other=0.0).to(total.dtype)[None, :]
        total = tl.where(total < 0, 0.0, total)  # what is no number stays so
    to = line * width + column
    tl.store(
        result + to[:, None] * channels + channel[None, :],
        total.to(result.dtype.element_ty),
        mask=(column < width)[:, None] & kept,
    )


def rectified_blur(z: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return what :func:`stages.decoders.blur.rectified_blur` does: blur, bias and ReLU in one pass."""
    return _run(z, bias, out, offset=0, rectify=True)


def transposed_blur(part: torch.Tensor) -> torch.Tensor:
    """Return the adjoint of the blur: (B, E, h, w) to (B, E, h + 3, w + 3), channels last."""
    return _run(part, part, None, offset=3, rectify=False)


def _run(
    source: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None, *, offset: int, rectify: bool
) -> torch.Tensor:
    source = source.contiguous(memory_format=torch.channels_last)
    batch, channels, rows, columns = source.shape
    height, width = rows - 3 + 2 * offset, columns - 3 + 2 * offset
    shape = (batch, channels, height, width)
    layout = torch.channels_last
    result = (
        torch.empty(shape, dtype=source.dtype, device=source.device, memory_format=layout)
        if out is None
        else out
    )
    grid = (batch * height, triton.cdiv(width, _COLUMNS), triton.cdiv(channels, _CHANNELS))
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device(source.device) if source.is_cuda else nullcontext():
        _blur_kernel[grid](
            source,
            bias,
            result,
            height,
            width,
            channels,
            offset=offset,
            rectify=rectify,
            double=source.dtype == torch.float64,
            COLUMNS=_COLUMNS,
            CHANNELS=_CHANNELS,
        )
    return result
