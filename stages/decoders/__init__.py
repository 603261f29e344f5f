"""Decoders: small trainable networks from a token grid to the logits of every pixel, found by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stages.decoders.geometry import Geometry
from stages.decoders.linear import LinearDecoder
from stages.decoders.mlp import MlpDecoder
from stages.decoders.options import Choice, Option, Whole, defaults
from stages.decoders.plugins import installed_decoders
from stages.decoders.single_scale import SingleScaleDecoder
from stages.decoders.upconv import UpConv, UpConvMode
from store.errors import FrostgridError, InputError, InputErrors

__all__ = [
    "DECODERS",
    "Choice",
    "Geometry",
    "Option",
    "UpConvMode",
    "Whole",
    "build_decoder",
    "decoder_faults",
    "decoder_names",
    "decoder_options",
    "decoder_source",
    "set_upconv_mode",
]


DECODERS: dict[str, type[SingleScaleDecoder | LinearDecoder | MlpDecoder]] = {
    "single-scale": SingleScaleDecoder,
    "linear": LinearDecoder,
    "mlp": MlpDecoder,
}


def decoder_names() -> list[str]:
    """Return the names of all decoders: our own, then those of installed packages."""
    return [*DECODERS, *(name for name in installed_decoders() if name not in DECODERS)]


def decoder_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of every option of the decoder ``name``: as ``given``, else, or where that is None, its default.

    Raises ``InputError`` for a decoder that is not known, that is installed under a name of ours or cannot be
    imported, and ``InputErrors`` with every option that it does not have or does not take.
    """
    known = _known(name)
    faults = []
    for option, value in given.items():
        if option not in known:
            has = f"Its options: {', '.join(known)}." if known else "It has no options."
            faults.append(
                InputError(
                    f"the decoder {name} has no option {option!r}", where="train.decoder_options", remedy=has
                )
            )
        elif value is not None and not known[option].takes(value):
            faults.append(
                InputError(
                    f"the option {option} of the decoder {name} cannot be {value!r}",
                    where="train.decoder_options",
                    remedy=f"Give {known[option]}.",
                )
            )
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise InputErrors(faults, remedy="Correct the options of the decoder.")
    return {**defaults(known), **{option: value for option, value in given.items() if value is not None}}


def decoder_source(name: str) -> str | None:
    """Return the package and version that bring a decoder; None for one of ours.

    Raises ``InputError`` as :func:`decoder_options` does for a decoder that cannot be used.
    """
    _known(name)
    return None if name in DECODERS else installed_decoders()[name].source


def build_decoder(name: str, geometry: Geometry, **options: Any) -> nn.Module:
    """Build the decoder ``name`` on the CPU; its first weights come from torch's global generator.

    ``options`` are the decoder's own, see its class. With the sizes of ``geometry`` the module maps tokens
    (B, width_in, h, w) to logits (B, classes, target_px, target_px). Raises ``InputError`` as :func:`decoder_options`
    does, for options that do not go with ``geometry``, and for an installed decoder that cannot be used.
    """
    chosen = decoder_options(name, options)
    build = DECODERS[name] if name in DECODERS else installed_decoders()[name].build
    return build(geometry, **chosen)


def decoder_faults() -> list[FrostgridError]:
    """Return what is wrong with installed decoders, as far as building them without weights tells."""
    faults: list[FrostgridError] = []
    for name in installed_decoders():
        try:
            with torch.device("meta"):
                build_decoder(name, Geometry(8, (8, 8), 128, 128, 2))
        except FrostgridError as error:
            faults.append(error)
    return faults


def set_upconv_mode(decoder: nn.Module, mode: UpConvMode) -> None:
    """Let every :class:`UpConv` of ``decoder`` compute by ``mode``: a matter of speed, not of the function."""
    for module in decoder.modules():
        if isinstance(module, UpConv):
            module.set_mode(mode)


def _known(name: str) -> Mapping[str, Option]:
    if name in DECODERS and name in installed_decoders():
        raise InputError(
            f"an installed package calls its decoder {name!r}, which is one of ours",
            where=installed_decoders()[name].where,
            remedy="Rename its entry point, so that results cannot be confused.",
        )
    if name in DECODERS:
        return DECODERS[name].OPTIONS
    if name in installed_decoders():
        return installed_decoders()[name].options
    raise InputError(
        f"unknown decoder {name!r}",
        where="train.decoder",
        remedy=f"Choose one of {', '.join(decoder_names())}.",
    )
