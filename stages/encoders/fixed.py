"""Encoders without weights: always there, as the floor of a benchmark and as its embedded default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from stages.encoders.base import (
    EXTRACTOR_REVISION,
    AskedDtype,
    Description,
    Fit,
    TokenGrid,
    checked_tokens,
    checked_views,
)
from stages.encoders.inputs import fitted, normalised, run_px
from stages.encoders.stain import stain_tokens
from stages.encoders.table import FixedRow
from store.errors import InputError


def pixel_tokens(images: torch.Tensor, patch: int) -> torch.Tensor:
    """Return (B, 3 P², h, w) tokens: the pixels of each patch, in the order row, column, channel (channel fastest)."""
    batch, channels, height, width = images.shape
    cells = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


def _pixels(images: torch.Tensor, row: FixedRow) -> torch.Tensor:
    if row.mean is None or row.std is None:
        raise InputError(
            "the encoder 'pixels' needs mean and std", where=row.name, remedy="Add them to its row."
        )
    return pixel_tokens(normalised(images, row.mean, row.std), row.patch)


def _stain(images: torch.Tensor, row: FixedRow) -> torch.Tensor:
    return stain_tokens(images)


_TOKENS: Final[Mapping[str, Callable[[torch.Tensor, FixedRow], torch.Tensor]]] = {
    "pixels": _pixels,
    "stain": _stain,
}


def describe(row: FixedRow, *, tile_px: int, fit: Fit, input_px: int | None = None) -> Description:
    """Return what the encoder is. Raises ``InputError`` for a row that no code belongs to, or an impossible size."""
    if row.name not in _TOKENS:
        raise InputError(
            f"the family 'fixed' is for {' and '.join(_TOKENS)} only",
            where=row.name,
            remedy="Use the family 'timm', or bring an encoder of your own by an entry point.",
        )
    px = run_px(tile_px, row.patch, input_px)
    fit = fit if input_px is None else "resize"
    side = px // row.patch
    return Description(
        name=row.name,
        title=row.title,
        family=row.family,
        grid=TokenGrid(row.d, side, side),
        tile_px=tile_px,
        run_px=px,
        fit=fit,
        patch=row.patch,
        parameters=0,
        layer=None,
        depth=None,
        licence=row.licence,
        gated=False,
        repo=None,
        identity={
            "encoder": row.name,
            "family": row.family,
            "extractor": EXTRACTOR_REVISION,
            "patch": row.patch,
            "tile_px": tile_px,
            "input_px": px,
            "fit": "none" if tile_px == px else fit,
            "mean": None if row.mean is None else list(row.mean),
            "std": None if row.std is None else list(row.std),
        },
        share=row.share,
        float32_only=True,
    )


def load(
    row: FixedRow,
    *,
    tile_px: int,
    weights: Path | None,
    fit: Fit,
    input_px: int | None,
    device: torch.device,
    dtype: AskedDtype,
) -> FixedEncoder:
    """Return the encoder. Always computed in float32.

    Raises ``InputError`` for a weights file or a 16-bit ``dtype``; a folder of weights, which may serve other
    encoders, is of no concern to it.
    """
    if weights is not None and not weights.is_dir():
        raise InputError(f"{row.name} has no weights to load", where=weights, remedy="Leave the file out.")
    if dtype not in ("auto", "float32"):
        raise InputError(
            f"{row.name} is computed in float32, not in {dtype}", where="dtype", remedy="Leave the dtype out."
        )
    return FixedEncoder(row, describe(row, tile_px=tile_px, fit=fit, input_px=input_px), device)


class FixedEncoder:
    """An encoder without weights; see :class:`stages.encoders.base.Encoder`."""

    def __init__(self, row: FixedRow, description: Description, device: torch.device) -> None:
        self._row, self._description, self._device = row, description, device
        self._tokens = _TOKENS[row.name]
        self.name = row.name
        self.grid = description.grid
        self.parameters = 0
        self.identity: Mapping[str, Any] = {**description.identity, "compute_dtype": "float32"}
        self.provenance: Mapping[str, Any] = {
            "title": row.title,
            "licence": row.licence,
            "share": row.share,
            "source": row.source,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "torch": torch.__version__,
        }

    @torch.inference_mode()
    def encode(self, views: torch.Tensor) -> torch.Tensor:
        """Encode (B, 3, tile_px, tile_px) uint8 RGB views to (B, d, h, w) float32 tokens.

        Raises ``ValueError`` for views of another shape or dtype.
        """
        described = self._description
        views = checked_views(views, described.tile_px).to(self._device, non_blocking=True)
        tokens = self._tokens(fitted(views, described.run_px, described.fit), self._row)
        return checked_tokens(tokens, self.grid, self.name, "float32")
