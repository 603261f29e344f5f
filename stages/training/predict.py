"""From token grids to classes with a trained decoder."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stages.decoders import Geometry, build_decoder, set_upconv_mode
from stages.training.settings import TrainSettings
from stages.training.step import autocast


def trained_decoder(
    settings: TrainSettings, geometry: Geometry, weights: Mapping[str, torch.Tensor], device: torch.device
) -> nn.Module:
    """Return the decoder that ``settings`` names with the ``weights`` of a run, on ``device``, ready to predict.

    Strict, so that weights of another decoder are refused by torch. No first weights are drawn, so that no random state
    is touched.
    """
    with torch.device("meta"):
        decoder = build_decoder(settings.decoder, geometry, **settings.options)
    set_upconv_mode(decoder, settings.upconv)
    decoder.load_state_dict(dict(weights), assign=True)
    decoder.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return decoder.eval()


def predict(
    settings: TrainSettings, geometry: Geometry, weights: Mapping[str, torch.Tensor], tokens: torch.Tensor
) -> NDArray[np.uint8]:
    """Return the most likely class of every pixel, (N, target_px, target_px) uint8, from tokens (N, d, h, w).

    ``weights``: see :func:`trained_decoder`. One tile at a time, on the device of ``tokens``, in the precision of the
    settings.
    """
    decoder = trained_decoder(settings, geometry, weights, tokens.device)
    with torch.inference_mode(), autocast(settings.precision, tokens.device):
        labels = [decoder(tile[None].float()).argmax(dim=1).to(torch.uint8) for tile in tokens]
    return np.asarray(torch.cat(labels).cpu().numpy())


def logits_of(decoder: nn.Module, tokens: NDArray[np.float16], device: torch.device) -> NDArray[np.float32]:
    """Return the logits (C, target_px, target_px) float32 of one token grid (d, h, w), as :func:`predict` has them."""
    with torch.inference_mode():
        logits = decoder(torch.from_numpy(tokens)[None].to(device).float())[0]
    return np.asarray(logits.float().cpu().numpy())
