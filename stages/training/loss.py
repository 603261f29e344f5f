"""The losses of a decoder, each a function of sums over the annotated pixels of a batch (section 2.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from stages.tiles.dataset import IGNORE

# The exponent of the focal loss: the best of its paper, Lin et al. 2017, arXiv:1708.02002, table 1b.
FOCUS = 2


@dataclass(frozen=True)
class Loss:
    """A loss in two steps, so that it can be taken of a batch that is worked on piece by piece.

    ``statistics(logits, truth)`` takes ``logits`` (B, C, H, W) of any floating dtype (half types are computed in
    float32) and ``truth`` (B, H, W) uint8, class index or 255, and returns sums over the annotated pixels, (S,): those
    of several pieces of a batch are to be added. ``value(statistics)`` makes the loss of the whole from them, a scalar;
    its gradient in the statistics is what each piece is to be propagated back with. Ignored pixels are in no sum; with
    nothing but ignored pixels loss and gradients are 0.
    """

    statistics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    value: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch that is at hand as a whole."""
        return self.value(self.statistics(logits, truth))


@dataclass(frozen=True)
class _Pixels:
    """What all losses begin with: which pixels have a label, and the log-probabilities."""

    kept: torch.Tensor  # (B, H, W) bool
    log_p: torch.Tensor  # (B, C, H, W)
    log_true: torch.Tensor  # (B, H, W), of no meaning where there is no label


def _pixels(logits: torch.Tensor, truth: torch.Tensor) -> _Pixels:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).contiguous()
    kept = truth != IGNORE
    log_p = torch.log_softmax(logits, dim=1)
    return _Pixels(kept, log_p, _masked(log_p, truth) if log_p.is_cuda else _gathered(log_p, truth))


def _gathered(log_p: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of the true class, (B, H, W); of class 0 where there is no label."""
    label = torch.where(truth != IGNORE, truth, 0).long().unsqueeze(1)
    return log_p.gather(1, label).squeeze(1)


def _masked(log_p: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the same, but 0 where there is no label.

    For GPUs, on which the gradient of a gather is summed in a fixed order by sorting all pixels, though none is met
    twice. A sum of one term and zeros is exact, so that both ways give the same bits; on a CPU this one is slower.
    """
    classes = torch.arange(log_p.shape[1], dtype=truth.dtype, device=truth.device).view(-1, 1, 1)
    return torch.where(truth.unsqueeze(1) == classes, log_p, 0).sum(1)


def _entropy(pixels: _Pixels) -> torch.Tensor:
    entropy: torch.Tensor = -(pixels.log_true * pixels.kept).sum()
    return entropy


def _overlaps(pixels: _Pixels, truth: torch.Tensor) -> torch.Tensor:
    """Return (3C,): pixels of each class, their summed probability of it, and its summed probability everywhere."""
    members = [truth == c for c in range(pixels.log_p.shape[1])]
    p_true = pixels.log_true.exp()
    size = torch.stack([member.sum() for member in members])
    agreed = torch.stack([(p_true * member).sum() for member in members])
    claimed = (pixels.log_p.exp() * pixels.kept.unsqueeze(1)).sum((0, 2, 3))
    return torch.cat([size.to(agreed.dtype), agreed, claimed])


def _mean(statistics: torch.Tensor) -> torch.Tensor:
    """Return the mean over pixels from (sum, pixels)."""
    return statistics[0] / statistics[1].clamp(min=1)


def _dice(statistics: torch.Tensor) -> torch.Tensor:
    size, agreed, claimed = statistics.view(3, -1)
    present = size > 0
    dice = 2 * agreed / torch.where(present, claimed + size, 1)
    lost: torch.Tensor = ((1 - dice) * present).sum() / present.sum().clamp(min=1)
    return lost


def _ce_statistics(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    pixels = _pixels(logits, truth)
    entropy = _entropy(pixels)
    return torch.stack([entropy, pixels.kept.sum().to(entropy.dtype)])


def _dice_statistics(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return _overlaps(_pixels(logits, truth), truth)


def _ce_dice_statistics(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    pixels = _pixels(logits, truth)
    return torch.cat([_entropy(pixels)[None], _overlaps(pixels, truth)])


def _ce_dice_value(statistics: torch.Tensor) -> torch.Tensor:
    sizes = statistics[1 : 1 + (len(statistics) - 1) // 3]
    return statistics[0] / sizes.sum().clamp(min=1) + _dice(statistics[1:])


def _focal_statistics(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    pixels = _pixels(logits, truth)
    missed = -torch.expm1(pixels.log_true)  # 1 - p without cancellation
    focal = -(missed.pow(FOCUS) * pixels.log_true * pixels.kept).sum()
    return torch.stack([focal, pixels.kept.sum().to(focal.dtype)])


LOSSES: dict[str, Loss] = {
    "ce+dice": Loss(_ce_dice_statistics, _ce_dice_value),
    "ce": Loss(_ce_statistics, _mean),
    "dice": Loss(_dice_statistics, _dice),
    "focal": Loss(_focal_statistics, _mean),
}
"""By name. Means are over the annotated pixels of the batch.

- ``ce``: mean cross-entropy.
- ``dice``: mean of 1 - Dice over the classes that the batch's truth has. Dice of class c is ``2 I / (P + T)`` with
  I, P, T summed over all pixels of the batch: I the softmax probability of c where the truth is c, P everywhere, T the
  pixels of c.
- ``ce+dice``: their sum, the paper's (section 2.4).
- ``focal``: mean of ``-(1 - p)**2 log p``, p the softmax probability of the true class.
"""
