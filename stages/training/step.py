"""One optimiser step on one batch, worked on as a whole or, where memory is short, piece by piece."""

from __future__ import annotations

import torch
from torch import nn

from stages.training.loss import Loss
from stages.training.settings import Precision


def backward(
    decoder: nn.Module,
    loss: Loss,
    tokens: torch.Tensor,
    truth: torch.Tensor,
    *,
    at_once: int,
    precision: Precision,
) -> torch.Tensor:
    """Add the gradients of the batch's loss to those of the decoder's parameters; returns the loss, a scalar.

    ``tokens`` (B, d, h, w) float32, ``truth`` (B, H, W) uint8. At most ``at_once`` tiles are kept for the backward
    pass at a time. The loss is that of the whole batch in any case, since it is a function of sums over its pixels:
    a first pass without gradients takes the sums, a second one propagates each piece back with the whole's gradient.
    That costs a third more, and gives the same gradients up to the rounding of sums (exact in exact arithmetic).
    """
    if at_once >= len(tokens):
        value = loss(_logits(decoder, tokens, precision), truth)
        value.backward()
        return value.detach()
    pieces = list(zip(torch.split(tokens, at_once), torch.split(truth, at_once), strict=True))
    with torch.no_grad():
        sums = [loss.statistics(_logits(decoder, part, precision), labels) for part, labels in pieces]
    total = torch.stack(sums).sum(0).requires_grad_()
    value = loss.value(total)
    (slope,) = torch.autograd.grad(value, total)
    for part, labels in pieces:
        loss.statistics(_logits(decoder, part, precision), labels).backward(slope)
    return value.detach()


def _logits(decoder: nn.Module, tokens: torch.Tensor, precision: Precision) -> torch.Tensor:
    with autocast(precision, tokens.device):
        logits: torch.Tensor = decoder(tokens)
    return logits


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the region a decoder is run in: "bfloat16" computes its products in that, with float32 weights."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
