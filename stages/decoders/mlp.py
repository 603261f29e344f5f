"""A decoder that looks at one token at a time: what the tokens hold beyond a linear probe, without their neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from stages.decoders.geometry import Geometry
from stages.decoders.options import Option, Whole


class MlpDecoder(nn.Module):
    """1x1 convolution d to D, ReLU, 1x1 convolution D to C, bilinear: (B, d, h, w) to (B, C, target_px, target_px).

    ``hidden`` is D.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {"hidden": Whole(256)}

    def __init__(self, geometry: Geometry, *, hidden: int = 256) -> None:
        super().__init__()
        self.geometry = geometry
        self.layers = nn.Sequential(
            nn.Conv2d(geometry.width_in, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, geometry.classes, 1)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of every pixel."""
        return self.geometry.fit(self.layers(tokens))
