"""Decoders: small trainable networks from a token grid to the logits of every pixel, found by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from stages.decoders.geometry import Geometry
from stages.decoders.linear import LinearDecoder
from stages.decoders.single_scale import SingleScaleDecoder
from stages.decoders.upconv import UpConv, UpConvMode
from store.errors import InputError

__all__ = ["DECODERS", "Geometry", "build_decoder", "set_upconv_mode"]

DECODERS: dict[str, Callable[..., nn.Module]] = {
    "single-scale": SingleScaleDecoder,
    "linear": LinearDecoder,
}


def build_decoder(name: str, geometry: Geometry, **options: Any) -> nn.Module:
    """Build the decoder ``name`` on the CPU; its first weights come from torch's global generator.

    ``options`` are the decoder's own (``single-scale``: ``width``). With the sizes of ``geometry`` the module maps
    tokens (B, width_in, h, w) to logits (B, classes, target_px, target_px). ``InputError`` for an unknown name, an
    unknown option, or a value that is not a positive whole number.
    """
    if name not in DECODERS:
        raise InputError(
            f"unknown decoder {name!r}", where="decoder", remedy=f"Choose one of {', '.join(DECODERS)}."
        )
    known = list(inspect.signature(DECODERS[name]).parameters)[1:]
    for option, value in options.items():
        if option not in known:
            raise InputError(
                f"the decoder {name} has no option {option!r}",
                where="decoder",
                remedy=f"Its options: {', '.join(known)}." if known else "It has no options.",
            )
        if not isinstance(value, int) or value < 1:
            raise InputError(
                f"the option {option} of the decoder {name} cannot be {value!r}",
                where="decoder",
                remedy="Give a whole number of 1 or more.",
            )
    return DECODERS[name](geometry, **options)


def set_upconv_mode(decoder: nn.Module, mode: UpConvMode) -> None:
    """Let every :class:`UpConv` of ``decoder`` compute by ``mode``: a matter of speed, not of the function."""
    for module in decoder.modules():
        if isinstance(module, UpConv):
            module.set_mode(mode)
