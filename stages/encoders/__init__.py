"""Frozen encoders: a reference and a tile size become an encoder, or a description of one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from stages.encoders import fixed, hub, local, vit
from stages.encoders.base import (
    AskedDtype,
    ComputeDtype,
    Description,
    Encoder,
    Fit,
    Identified,
    TokenGrid,
    usable_device,
)
from stages.encoders.checkpoint import file_sha256
from stages.encoders.hub import download_progress
from stages.encoders.inputs import run_px
from stages.encoders.local import WEIGHTS_VARIABLE, weights_folder
from stages.encoders.plugins import Plugin, plugin_faults
from stages.encoders.reference import known_encoders, parse_reference
from stages.encoders.refusals import RefusedByHub
from stages.encoders.table import TimmRow
from store.errors import FrostgridError

__all__ = [
    "WEIGHTS_VARIABLE",
    "AskedDtype",
    "Card",
    "ComputeDtype",
    "Description",
    "Encoder",
    "Fit",
    "Identified",
    "RefusedByHub",
    "TokenGrid",
    "canonical_name",
    "check_weights",
    "describe_encoder",
    "download_progress",
    "encoder_card",
    "encoder_flop",
    "file_sha256",
    "hub_refusal",
    "known_encoders",
    "load_encoder",
    "plugin_faults",
    "usable_device",
    "weights_at_hand",
    "weights_folder",
]


class Card(NamedTuple):
    """Other names of an encoder, whether its repository on the Hub wants a request first, and that repository.

    ``installed``: a plug-in, whose package knows where its weights are.
    """

    aliases: tuple[str, ...] = ()
    gated: bool = False
    repo: str | None = None
    installed: bool = False


def canonical_name(reference: str) -> str:
    """Return the one name of an encoder and block: ``dinov2-s14`` for ``dinov2-s14@6``, since 6 is its default.

    Raises ``InputError`` as :func:`stages.encoders.reference.parse_reference` does.
    """
    return parse_reference(reference).canonical


def describe_encoder(
    reference: str, *, tile_px: int, fit: Fit = "resize", input_px: int | None = None
) -> Description:
    """Return grid, parameters and bytes a view of an encoder, without its weights and without a download.

    ``input_px`` is the side that views are resized to instead of the multiple of the patch next to ``tile_px``. Raises
    ``InputError`` for an unknown reference, a size that the encoder cannot take, and whatever is wrong with a plug-in.
    """
    found = parse_reference(reference)
    if isinstance(found.encoder, Plugin):
        return found.encoder.describe(tile_px=tile_px, fit=fit, input_px=input_px)
    if isinstance(found.encoder, TimmRow):
        layer = found.layer or found.encoder.default_layer
        return vit.describe(
            found.encoder, layer, found.canonical, tile_px=tile_px, fit=fit, input_px=input_px
        )
    return fixed.describe(found.encoder, tile_px=tile_px, fit=fit, input_px=input_px)


def encoder_flop(reference: str, *, tile_px: int, input_px: int | None = None) -> int:
    """Return the FLOP of encoding one view (a multiply-add is two); 0 where it is negligible or, of a plug-in, unknown.

    Counted on shapes alone. Raises ``InputError`` as :func:`describe_encoder` does.
    """
    found = parse_reference(reference)
    if not isinstance(found.encoder, TimmRow):
        return 0
    row, px = found.encoder, run_px(tile_px, found.encoder.patch, input_px)
    return vit.flop(row, found.layer or row.default_layer, px)


def encoder_card(reference: str) -> Card:
    """Return what the table says of an encoder beside its arithmetic; an empty card for a plug-in."""
    found = parse_reference(reference).encoder
    if isinstance(found, Plugin):
        return Card(installed=True)
    if isinstance(found, TimmRow):
        return Card(found.aliases, found.gated, found.hub_repo)
    return Card(found.aliases)


def weights_at_hand(
    reference: str, weights: Path | None = None, *, revision: str | None = None, named: bool = False
) -> Path | None:
    """Return the weights file that :func:`load_encoder` would take if it is on this machine; no network is asked.

    With ``named``, ``weights`` is a folder that serves other encoders, too, so that only names with the encoder's
    count. None where only the Hub could have it, and for encoders without weights or with their own way to them
    (plug-ins). Raises ``InputError`` for a path that is given and does not hold the weights, or several that differ.
    """
    found = parse_reference(reference).encoder
    if not isinstance(found, TimmRow):
        return None
    if named and weights is not None and weights.is_dir():
        return local.named_file(found, weights)
    file = hub.at_hand(found, weights, revision)
    return None if file is None else file.path


def check_weights(reference: str, weights: Path | None = None, *, revision: str | None = None) -> Path | None:
    """Return what :func:`weights_at_hand` does, once the header of the file shows that it is this encoder's.

    Raises ``InputError`` as :func:`weights_at_hand` and :func:`load_encoder` do.
    """
    file = weights_at_hand(reference, weights, revision=revision)
    found = parse_reference(reference).encoder
    if file is not None and isinstance(found, TimmRow):
        vit.check(found, file)
    return file


def hub_refusal(
    reference: str, *, revision: str | None = None, timeout: float = 10.0
) -> FrostgridError | None:
    """Ask the Hub whether it would give the weights; return the error that loading would end with, None for a yes.

    ``timeout`` in seconds. A :class:`RefusedByHub` has the reason in a word. None, too, for encoders without weights
    or with their own way to them (plug-ins).
    """
    found = parse_reference(reference).encoder
    return hub.refusal(found, revision, timeout=timeout) if isinstance(found, TimmRow) else None


def load_encoder(
    reference: str,
    *,
    tile_px: int,
    weights: Path | None = None,
    revision: str | None = None,
    fit: Fit = "resize",
    input_px: int | None = None,
    device: str | torch.device = "cpu",
    dtype: AskedDtype = "auto",
    compile: bool = False,
) -> Encoder:
    """Load the encoder that ``reference`` names, for views of ``tile_px``.

    ``weights`` is a file or folder; without it the weights come from FROSTGRID_WEIGHTS or the Hugging Face Hub, there
    of ``revision`` (a commit, a tag, a branch) in place of the row's. ``fit`` says how a view is brought to a multiple
    of the patch; with ``input_px`` it is resized to that side. ``dtype`` "auto" is float32 on the CPU and the row's
    advice on a GPU; the choice is part of the identity. ``compile`` has torch.compile translate a vision
    transformer; other encoders, which have no network or one of their own, are left as they are. Raises ``InputError``,
    ``AccessError``, ``StorageError`` or ``VerificationError``.
    """
    found = parse_reference(reference)
    target = usable_device(device)
    if isinstance(found.encoder, TimmRow):
        layer = found.layer or found.encoder.default_layer
        encoder = vit.load(
            found.encoder,
            layer,
            found.canonical,
            tile_px=tile_px,
            weights=weights,
            revision=revision,
            fit=fit,
            input_px=input_px,
            device=target,
            dtype=dtype,
        )
        if compile:
            encoder.compile()
        return encoder
    if isinstance(found.encoder, Plugin):
        return found.encoder.load(
            tile_px=tile_px, weights=weights, fit=fit, input_px=input_px, device=target, dtype=dtype
        )
    return fixed.load(
        found.encoder,
        tile_px=tile_px,
        weights=weights,
        fit=fit,
        input_px=input_px,
        device=target,
        dtype=dtype,
    )
