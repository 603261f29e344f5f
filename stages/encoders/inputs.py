"""Fitting a view to an encoder: views of any side, encoders that want a multiple of their patch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from stages.encoders.base import Fit
from store.errors import InputError


def run_px(tile_px: int, patch: int, input_px: int | None = None) -> int:
    """Return the side an encoder runs at: the smallest multiple of ``patch`` that is not below ``tile_px``.

    ``input_px`` is another side that was asked for. Raises ``InputError`` for one that is no multiple of ``patch``, and
    for a tile smaller than one patch.
    """
    if input_px is not None:
        below = input_px // patch * patch
        if below != input_px or input_px < patch:
            raise InputError(
                f"an input of {input_px} px is no multiple of the encoder's patch of {patch} px",
                where="encoders.input_px",
                remedy=f"Use {f'{below} or ' if below > 0 else ''}{max(below, 0) + patch}.",
            )
        return input_px
    if tile_px < patch:
        raise InputError(
            f"a tile of {tile_px} px is smaller than one patch of {patch} px",
            where="tile_px",
            remedy=f"Use a tile_px of at least {patch}.",
        )
    return -(-tile_px // patch) * patch


def fitted(views: torch.Tensor, px: int, fit: Fit) -> torch.Tensor:
    """Return (B, 3, px, px) float32 in [0, 1] from (B, 3, tile_px, tile_px) uint8 views.

    ``"resize"`` scales the whole view (bicubic, antialiased, clamped to [0, 1] since the kernel overshoots), so that
    the token grid spans exactly the view. ``"pad"`` keeps the pixels and reflects them at the bottom and right, so
    that the token grid spans ``px`` and its part beyond the view is to be cropped.
    """
    images = views.float() / 255.0
    missing = px - views.shape[-1]
    if missing == 0:
        return images
    if fit == "pad":
        return F.pad(images, (0, missing, 0, missing), mode="reflect")
    images = F.interpolate(images, size=(px, px), mode="bicubic", antialias=True, align_corners=False)
    return images.clamp_(0.0, 1.0)


def normalised(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return (B, 3, px, px) ``images`` in [0, 1] less ``mean``, over ``std``, per channel."""
    centre = images.new_tensor(mean).view(1, 3, 1, 1)
    spread = images.new_tensor(std).view(1, 3, 1, 1)
    return (images - centre) / spread
