"""What every encoder is to the rest of frostgrid: views in, token grids out, and an identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import torch

from store.errors import InputError

Fit = Literal["resize", "pad"]
ComputeDtype = Literal["float32", "float16", "bfloat16"]
AskedDtype = Literal["auto", "float32", "float16", "bfloat16"]
Sharing = Literal["allowed", "forbidden", "unclear"]

EXTRACTOR_REVISION: Final = 1
"""Part of every identity. To be raised with any change of this package that changes tokens."""


@dataclass(frozen=True)
class TokenGrid:
    """Geometry of one view's token grid: ``d`` channels on ``h`` rows and ``w`` columns of patches."""

    d: int
    h: int
    w: int


class Identified(Protocol):
    """What is known of an encoder once it was loaded, here or elsewhere.

    ``name`` is the canonical reference (``"uni"``, ``"dinov2-s14@12"``). ``identity`` is JSON-able and holds all that
    changes the tokens; ``provenance`` is JSON-able and holds what does not: library versions, device, licence, origin
    of the weights.
    """

    @property
    def name(self) -> str:
        """The canonical reference."""

    @property
    def grid(self) -> TokenGrid:
        """Geometry of the token grid of one view."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that changes the tokens."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Everything worth recording that does not change the tokens."""


class Encoder(Identified, Protocol):
    """A frozen encoder, loaded and ready for views of one size.

    ``parameters`` counts the weights of the whole published encoder, also where a lower block is used.
    """

    @property
    def parameters(self) -> int:
        """Number of weights of the published encoder."""

    def encode(self, views: torch.Tensor) -> torch.Tensor:
        """Encode (B, 3, px, px) uint8 RGB views to (B, d, h, w) float32 tokens on the encoder's device."""


@dataclass(frozen=True)
class Description:
    """What is known of an encoder without its weights, for views of ``tile_px``.

    ``run_px`` is the side the encoder runs at (a multiple of ``patch``); ``layer`` and ``depth`` are None for an
    encoder without blocks; ``repo`` is None where the weights are not on the Hugging Face Hub; ``identity`` is the part
    of the loaded encoder's identity that needs no weights: all but the weights' sha256 and the precision. ``share``
    says whether the licence lets its tokens be passed on; ``float32_only`` that no other precision can be asked for.
    """

    name: str
    title: str
    family: str
    grid: TokenGrid
    tile_px: int
    run_px: int
    fit: Fit
    patch: int
    parameters: int
    layer: int | None
    depth: int | None
    licence: str
    gated: bool
    repo: str | None
    identity: Mapping[str, Any]
    share: Sharing = "unclear"
    float32_only: bool = False

    @property
    def bytes_a_view(self) -> int:
        """Bytes of one view's token grid in float16, before compression."""
        return 2 * self.grid.d * self.grid.h * self.grid.w


def usable_device(device: str | torch.device | None) -> torch.device:
    """Return ``device`` as it was asked for; for None a GPU where there is one, else the CPU.

    A GPU without a number stands for all of them where several may be used, else for torch's current one. Raises
    ``InputError`` for one that does not exist here.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}",
            where="device",
            remedy="Use cpu, or a device that torch finds on this machine.",
        ) from None


def checked_views(views: torch.Tensor, tile_px: int) -> torch.Tensor:
    """Return ``views`` if they are (B, 3, tile_px, tile_px) uint8; raise ``ValueError`` otherwise."""
    if views.dtype != torch.uint8 or views.ndim != 4 or views.shape[1:] != (3, tile_px, tile_px):
        raise ValueError(
            f"views must be uint8 of shape (B, 3, {tile_px}, {tile_px}), not {views.dtype} of {tuple(views.shape)}"
        )
    return views


def checked_tokens(tokens: torch.Tensor, grid: TokenGrid, name: str, compute_dtype: str) -> torch.Tensor:
    """Return (B, d, h, w) tokens as contiguous float32.

    Raises ``RuntimeError`` where the shape is not that of ``grid`` and ``InputError`` where a value is not finite, as
    happens when 16-bit arithmetic overflows or a weight file holds NaN.
    """
    if tokens.shape[1:] != (grid.d, grid.h, grid.w):
        raise RuntimeError(
            f"{name} gave tokens of shape {tuple(tokens.shape)}, expected (B, {grid.d}, {grid.h}, {grid.w})"
        )
    tokens = tokens.float().contiguous()
    if not bool(torch.isfinite(tokens).all()):
        raise InputError(
            f"the tokens of {name}, computed in {compute_dtype}, hold values that are not finite",
            remedy="Run it in float32, or in bfloat16 on a GPU. If they still are not, the weights file is damaged.",
        )
    return tokens
