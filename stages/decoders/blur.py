"""The blur behind the fast operator, with what is done beside it: bias and ReLU forward, ReLU's mask backward."""

from __future__ import annotations

import warnings
from functools import cache

import torch
import torch.nn.functional as F


def rectified_blur(z: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``relu(b * z + bias)`` with b = [1, 3, 3, 1] / 4 along each axis: (B, E, h + 3, w + 3) to (B, E, h, w).

    Channels last in, channels last out (in ``out`` if given), in the dtype of ``z``; sums on a GPU float32 or wider.
    """
    if z.is_cuda and _fused(z.device):
        from stages.decoders.blur_triton import rectified_blur as fused

        return fused(z, bias, out)
    blurred = F.conv2d(z, _kernel(z), bias, groups=z.shape[1])
    return blurred.clamp_min_(0) if out is None else torch.clamp_min(blurred, 0, out=out)


def blur_gradients(
    grad: torch.Tensor, y: torch.Tensor, wide: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of z (B, E, h + 3, w + 3) and of the bias (E,) from those of the output ``y``.

    ``grad`` and ``y`` are (B, E, h, w), dz is channels last. The bias has its sums, and its dtype, in ``wide``.
    """
    part = torch.ops.aten.threshold_backward(grad, y, 0).contiguous(memory_format=torch.channels_last)
    dbias = part.sum((0, 2, 3), dtype=wide)
    if grad.is_cuda and _fused(grad.device):
        from stages.decoders.blur_triton import transposed_blur

        return transposed_blur(part), dbias
    return F.conv2d(part, _kernel(y), padding=3, groups=y.shape[1]), dbias


@cache
def _fused(device: torch.device) -> bool:
    """Whether the fused kernels run on ``device``, found out by running one; where they do not, that is said once.

    They are compiled when they are first used, for which Triton has to be there (torch brings it along for GPUs on
    Linux) and to find a C compiler. Without them the results are the same up to rounding.
    """
    try:
        from stages.decoders.blur_triton import rectified_blur as fused

        fused(torch.zeros(1, 1, 4, 4, device=device), torch.zeros(1, device=device))
    except Exception as error:  # a compiler may fail in any way
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"Kernels for {device} cannot be compiled ({why}): torch's convolution takes their place, which is slower. "
            "Triton needs a C compiler, such as gcc.",
            stacklevel=2,
        )
        return False
    return True


def _kernel(like: torch.Tensor) -> torch.Tensor:
    # Filled in place, since a copy to a GPU would keep the step from being recorded.
    taps = like.new_full((4,), 0.75)
    taps[::3] = 0.25
    return torch.outer(taps, taps).expand(like.shape[1], 1, 4, 4)
