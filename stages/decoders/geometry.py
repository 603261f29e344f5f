"""What a decoder has to connect: a token grid on one side, a tile's pixels on the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from store.errors import InputError


@dataclass(frozen=True)
class Geometry:
    """The sizes that fix a decoder's ends.

    ``width_in`` is the token width d, ``grid`` the token grid (h, w), ``target_px`` the tile's side, ``frame_px``
    the side of the square that the grid spans (equal to ``target_px`` unless the encoder padded the tile at its
    bottom and right), ``classes`` the number of classes C. ``InputError`` for sizes that cannot be.
    """

    width_in: int
    grid: tuple[int, int]
    target_px: int
    frame_px: int
    classes: int

    def __post_init__(self) -> None:
        sizes = {"width_in": self.width_in, "grid": min(self.grid), "target_px": self.target_px}
        for name, size in sizes.items():
            if size < 1:
                raise InputError(
                    f"a decoder needs a positive size, not {size}", where=name, remedy="Give 1 or more."
                )
        if self.classes < 2:
            raise InputError(
                f"{self.classes} class(es) leave nothing to tell apart",
                where="classes",
                remedy="Name at least two classes in the study.",
            )
        if self.frame_px < self.target_px:
            raise InputError(
                f"a grid that spans {self.frame_px} px does not cover a tile of {self.target_px} px",
                where="frame_px",
                remedy="Give the side, in tile pixels, that the whole token grid covers.",
            )

    @property
    def doublings(self) -> int:
        """The paper's s = ceil(log2(H / h)): how often the grid is doubled to reach the frame (section 2.3)."""
        return (-(-self.frame_px // min(self.grid)) - 1).bit_length()

    def fit(self, logits: torch.Tensor) -> torch.Tensor:
        """Bring logits (B, C, any, any) that span the frame to the tile's (B, C, target_px, target_px).

        Bilinear interpolation to the frame where the size differs (Eq. 5), then the padding is cut off.
        """
        frame = (self.frame_px, self.frame_px)
        if logits.shape[2:] != frame:
            logits = F.interpolate(logits, size=frame, mode="bilinear", align_corners=False)
        return logits[:, :, : self.target_px, : self.target_px]
