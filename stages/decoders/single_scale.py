"""The decoder of the paper (section 2.3): one scale of tokens in, logits of every pixel out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from stages.decoders.geometry import Geometry
from stages.decoders.options import Choice, Option, Whole
from stages.decoders.upsampling import UPSAMPLING
from store.errors import InputError

# Beyond the tile's own resolution: each costs four times the arithmetic of the one before.
EXTRA_DOUBLINGS = 2


class SingleScaleDecoder(nn.Module):
    """1x1 convolution d to D; s times bilinear x2, 3x3 convolution D to D, ReLU; 1x1 convolution D to C; resize.

    Maps float tokens (B, d, h, w) to logits (B, C, target_px, target_px). ``width`` is the paper's D = 256. ``depth``
    is the number of blocks, the paper's s = ceil(log2(H / h)) where it is None; logits of fewer or more are resized as
    those of Eq. 5 are. ``upsampling`` names the block, see :data:`UPSAMPLING`. 2.62 M parameters for s = 4, d = 1024,
    C = 3. Raises ``InputError`` for more than two blocks beyond the paper's s.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "width": Whole(256),
        "depth": Whole(None, low=0, high=8),
        "upsampling": Choice("bilinear", tuple(UPSAMPLING)),
    }

    def __init__(
        self, geometry: Geometry, *, width: int = 256, depth: int | None = None, upsampling: str = "bilinear"
    ) -> None:
        super().__init__()
        blocks = geometry.doublings if depth is None else depth
        if blocks > geometry.doublings + EXTRA_DOUBLINGS:
            raise InputError(
                f"a depth of {blocks} doubles the grid of {min(geometry.grid)} to {min(geometry.grid) << blocks} px, "
                f"for tiles of {geometry.target_px} px",
                where="train.decoder_options.depth",
                remedy=f"Give {geometry.doublings + EXTRA_DOUBLINGS} or less; the paper's is {geometry.doublings}.",
            )
        self.geometry = geometry
        self.project = nn.Conv2d(geometry.width_in, width, 1)
        self.blocks = nn.Sequential(*(UPSAMPLING[upsampling](width) for _ in range(blocks)))
        self.classify = nn.Conv2d(width, geometry.classes, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of every pixel (Eq. 4 and 5)."""
        return self.geometry.fit(self.classify(self.blocks(self.project(tokens))))
