"""Cross-entropy plus soft Dice over the annotated pixels of a batch (section 2.4)."""

from __future__ import annotations

import torch

from stages.tiles.dataset import IGNORE


def cross_entropy_dice(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy plus the mean of 1 - Dice over the classes of the batch, a scalar.

    ``logits`` (B, C, H, W) of any floating dtype (half types are computed in float32), ``truth`` (B, H, W) uint8,
    class index or 255. Dice of class c is ``2 I / (P + T)`` with I, P, T summed over all pixels of the batch: I the
    softmax probability of c where the truth is c, P everywhere, T the pixels of c. A class that the batch's truth
    lacks has no Dice; ignored pixels are in no sum; with nothing but ignored pixels loss and gradients are 0.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).contiguous()
    kept = truth != IGNORE
    label = torch.where(kept, truth, 0).long().unsqueeze(1)
    log_p = torch.log_softmax(logits, dim=1)
    log_true = log_p.gather(1, label).squeeze(1)
    entropy = -(log_true * kept).sum() / kept.sum().clamp(min=1)

    members = [truth == c for c in range(logits.shape[1])]
    size = torch.stack([member.sum() for member in members])
    p_true = log_true.exp()
    agreed = torch.stack([(p_true * member).sum() for member in members])
    claimed = (log_p.exp() * kept.unsqueeze(1)).sum((0, 2, 3))
    present = size > 0
    dice = 2 * agreed / torch.where(present, claimed + size, 1)
    return entropy + ((1 - dice) * present).sum() / present.sum().clamp(min=1)
