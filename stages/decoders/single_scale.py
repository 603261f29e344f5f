"""The decoder of the paper (section 2.3): one scale of tokens in, logits of every pixel out."""

from __future__ import annotations

import torch
from torch import nn

from stages.decoders.geometry import Geometry
from stages.decoders.upconv import UpConv


class SingleScaleDecoder(nn.Module):
    """1x1 convolution d to D; s times bilinear x2, 3x3 convolution D to D, ReLU; 1x1 convolution D to C; resize.

    s = ceil(log2(H / h)). Maps float tokens (B, d, h, w) to logits (B, C, target_px, target_px). ``width`` is the
    paper's D = 256. 2.62 M parameters for s = 4, d = 1024, C = 3.
    """

    def __init__(self, geometry: Geometry, *, width: int = 256) -> None:
        super().__init__()
        self.geometry = geometry
        self.project = nn.Conv2d(geometry.width_in, width, 1)
        self.blocks = nn.Sequential(*(UpConv(width) for _ in range(geometry.doublings)))
        self.classify = nn.Conv2d(width, geometry.classes, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of every pixel (Eq. 4 and 5)."""
        return self.geometry.fit(self.classify(self.blocks(self.project(tokens))))
