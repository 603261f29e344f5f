"""Position tables: read the grid a checkpoint was trained on, and resize the table once, at load.

The four ways of resizing differ even when the table grows (with antialias, PyTorch's cubic kernel has a = −0.5,
without it a = −0.75), and each encoder's authors mean one of them.
"""

from __future__ import annotations

from math import isqrt

import torch
import torch.nn.functional as F

from stages.encoders.table import PosPolicy
from store.errors import InputError


def stored_grid(rows: int, prefix_rows: int) -> int | None:
    """Return the side of the square grid in a position table of ``rows`` rows, None where it is not square."""
    patches = rows - prefix_rows
    side = isqrt(max(patches, 0))
    return side if side > 0 and side * side == patches else None


def needs_resizing(policy: PosPolicy, stored: int, run: int, *, patch: int, name: str) -> bool:
    """Return whether a table of side ``stored`` must be resized for a run at side ``run``.

    Raises ``InputError`` where it must and the encoder's policy is ``none``.
    """
    if stored == run:
        return False
    if policy == "none":
        raise InputError(
            f"{name} runs at its stored grid of {stored}×{stored} patches only, not at {run}×{run}",
            where="tile_px",
            remedy=f"Use a tile_px from {(stored - 1) * patch + 1} to {stored * patch}.",
        )
    return True


def baked(table: torch.Tensor, *, prefix_rows: int, stored: int, run: int, policy: PosPolicy) -> torch.Tensor:
    """Return the (1, prefix_rows + run², d) float32 position table for a run at side ``run``.

    ``table`` is (1, prefix_rows + stored², d); its prefix rows are kept. Always computed in float32 on the CPU, so
    that the table is the same whatever device encodes. Policies: ``timm`` bicubic with antialias; ``hf`` bicubic
    without; ``offset0.1`` bicubic without, by the scale factor (run + 0.1)/stored of DINO; ``bilinear``.
    """
    table = table.detach().to("cpu", torch.float32)
    if stored == run:
        return table
    prefix, patches = table[:, :prefix_rows], table[:, prefix_rows:]
    picture = patches.reshape(1, stored, stored, -1).permute(0, 3, 1, 2)
    size = (run, run)
    if policy == "timm":
        picture = F.interpolate(picture, size=size, mode="bicubic", antialias=True, align_corners=False)
    elif policy == "hf":
        picture = F.interpolate(picture, size=size, mode="bicubic", align_corners=False)
    elif policy == "offset0.1":
        factor = (run + 0.1) / stored
        picture = F.interpolate(picture, scale_factor=(factor, factor), mode="bicubic", align_corners=False)
    elif policy == "bilinear":
        picture = F.interpolate(picture, size=size, mode="bilinear", align_corners=False)
    else:
        raise ValueError(f"policy {policy!r} resizes nothing")
    if picture.shape[-2:] != size:
        raise RuntimeError(f"a table for {size} came out as {tuple(picture.shape[-2:])}")
    return torch.cat([prefix, picture.flatten(2).transpose(1, 2)], dim=1)
