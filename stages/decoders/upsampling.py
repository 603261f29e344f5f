"""Blocks that double a map's side other than the paper's way, for ablation: (B, D, h, w) to (B, D, 2h, 2w) each."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from stages.decoders.upconv import UpConv


class NearestBlock(nn.Module):
    """Each pixel four times, then 3x3 convolution and ReLU: the paper's block without interpolation, 9 D² weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Double the sides of ``x``."""
        return F.relu(self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


class TransposedBlock(nn.Module):
    """2x2 transposed convolution of stride 2, then 3x3 convolution and ReLU, 13 D² weights.

    The learned upsampling of U-Net (Ronneberger et al. 2015, arXiv:1505.04597) with one of its convolutions after it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Double the sides of ``x``."""
        return F.relu(self.conv(self.up(x)))


class PixelShuffleBlock(nn.Module):
    """3x3 convolution D to 4D, whose channels become the four pixels of each pixel, then ReLU, 36 D² weights.

    The sub-pixel convolution of Shi et al. 2016 (arXiv:1609.05158). Its convolution comes first, on the smaller map: a
    1x1 convolution there with a 3x3 one after it would be :class:`TransposedBlock` again.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Double the sides of ``x``."""
        return F.relu(F.pixel_shuffle(self.conv(x), 2))


UPSAMPLING: dict[str, Callable[[int], nn.Module]] = {
    "bilinear": UpConv,
    "nearest": NearestBlock,
    "transposed": TransposedBlock,
    "pixel-shuffle": PixelShuffleBlock,
}
"""By name: what makes a block of a width. "bilinear" is the paper's (Eq. 4)."""
