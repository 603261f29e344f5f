"""Frozen encoders: a reference and a tile size become an encoder, or a description of one."""

from __future__ import annotations

from pathlib import Path

import torch

from stages.encoders import fixed, vit
from stages.encoders.base import (
    AskedDtype,
    ComputeDtype,
    Description,
    Encoder,
    Fit,
    TokenGrid,
    usable_device,
)
from stages.encoders.checkpoint import file_sha256
from stages.encoders.inputs import run_px
from stages.encoders.plugins import Plugin
from stages.encoders.reference import known_encoders, parse_reference
from stages.encoders.table import TimmRow

__all__ = [
    "AskedDtype",
    "ComputeDtype",
    "Description",
    "Encoder",
    "Fit",
    "TokenGrid",
    "canonical_name",
    "describe_encoder",
    "encoder_flop",
    "file_sha256",
    "known_encoders",
    "load_encoder",
]


def canonical_name(reference: str) -> str:
    """Return the one name of an encoder and block: ``dinov2-s14`` for ``dinov2-s14@6``, since 6 is its default.

    Raises ``InputError`` as :func:`stages.encoders.reference.parse_reference` does.
    """
    return parse_reference(reference).canonical


def describe_encoder(reference: str, *, tile_px: int, fit: Fit = "resize") -> Description:
    """Return grid, parameters and bytes a view of an encoder, without its weights and without a download.

    Raises ``InputError`` for an unknown reference, or a tile size that the encoder cannot take.
    """
    found = parse_reference(reference)
    if isinstance(found.encoder, Plugin):
        return found.encoder.factory().describe(tile_px=tile_px, fit=fit)
    if isinstance(found.encoder, TimmRow):
        layer = found.layer or found.encoder.default_layer
        return vit.describe(found.encoder, layer, found.canonical, tile_px=tile_px, fit=fit)
    return fixed.describe(found.encoder, tile_px=tile_px, fit=fit)


def encoder_flop(reference: str, *, tile_px: int) -> int:
    """Return the FLOP of encoding one view (a multiply-add is two); 0 for encoders whose arithmetic is negligible.

    Counted on shapes alone. Raises ``InputError`` as :func:`describe_encoder` does.
    """
    found = parse_reference(reference)
    if not isinstance(found.encoder, TimmRow):
        return 0
    layer = found.layer or found.encoder.default_layer
    return vit.flop(found.encoder, layer, run_px(tile_px, found.encoder.patch))


def load_encoder(
    reference: str,
    *,
    tile_px: int,
    weights: Path | None = None,
    fit: Fit = "resize",
    device: str | torch.device = "cpu",
    dtype: AskedDtype = "auto",
) -> Encoder:
    """Load the encoder that ``reference`` names, for views of ``tile_px``.

    ``weights`` is a file or folder; without it the weights come from FROSTGRID_WEIGHTS or the Hugging Face Hub.
    ``fit`` says how a view is brought to a multiple of the patch. ``dtype`` "auto" is float32 on the CPU and the
    row's advice on a GPU; the choice is part of the identity. Raises ``InputError`` or ``AccessError``.
    """
    found = parse_reference(reference)
    target = usable_device(device)
    if isinstance(found.encoder, TimmRow):
        layer = found.layer or found.encoder.default_layer
        return vit.load(
            found.encoder,
            layer,
            found.canonical,
            tile_px=tile_px,
            weights=weights,
            fit=fit,
            device=target,
            dtype=dtype,
        )
    if isinstance(found.encoder, Plugin):
        factory = found.encoder.factory()
        return factory.load(tile_px=tile_px, weights=weights, fit=fit, device=target, dtype=dtype)
    return fixed.load(found.encoder, tile_px=tile_px, weights=weights, fit=fit, device=target, dtype=dtype)
