"""The linear probe: what the tokens hold without a decoder's help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from stages.decoders.geometry import Geometry
from stages.decoders.options import Option


class LinearDecoder(nn.Module):
    """1x1 convolution d to C, then bilinear interpolation: (B, d, h, w) to (B, C, target_px, target_px)."""

    OPTIONS: ClassVar[Mapping[str, Option]] = {}

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.classify = nn.Conv2d(geometry.width_in, geometry.classes, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of every pixel."""
        return self.geometry.fit(self.classify(tokens))
