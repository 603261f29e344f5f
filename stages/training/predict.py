"""From token grids to classes with a trained decoder."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from stages.decoders import Geometry, build_decoder, set_upconv_mode
from stages.training.settings import TrainSettings


def predict(
    settings: TrainSettings, geometry: Geometry, weights: Mapping[str, torch.Tensor], tokens: torch.Tensor
) -> NDArray[np.uint8]:
    """Return the most likely class of every pixel, (N, target_px, target_px) uint8, from tokens (N, d, h, w).

    ``weights``: the state of the decoder that ``settings`` names; strict, so those of another decoder are refused by
    torch. One tile at a time, on the device of ``tokens``, in float32.
    """
    with torch.device("meta"):  # no first weights are drawn, so no random state is touched
        decoder = build_decoder(settings.decoder, geometry, **settings.options)
    set_upconv_mode(decoder, settings.upconv)
    decoder.load_state_dict(dict(weights), assign=True)
    decoder.to(device=tokens.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    decoder.eval()
    with torch.inference_mode():
        labels = [decoder(tile[None].float()).argmax(dim=1).to(torch.uint8) for tile in tokens]
    return np.asarray(torch.cat(labels).cpu().numpy())
