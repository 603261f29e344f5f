"""The weightless encoder ``stain``: fixed statistics of optical density, 49 per patch.

Optical density is separated into haematoxylin, eosin and DAB by the stain matrix of Ruifrok and Johnston, Anal Quant
Cytol Histol 23:291-299 (2001). A foundation model that does not beat these numbers has said something.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F

PATCH: Final = 16

_STAINS: Final = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density in R, G, B of haematoxylin, eosin and DAB, each to be scaled to length 1."""

_RANKS: Final = (25, 127, 230)
"""Ranks of the 10 %, 50 % and 90 % points among the 256 sorted values of a patch."""

_GROUPS: Final[tuple[tuple[str, str, tuple[float, ...], tuple[float, ...]], ...]] = (
    ("mean", "HED", (0.12, 0.19, 0.056), (0.089, 0.12, 0.025)),
    ("std", "HED", (0.088, 0.065, 0.034), (0.049, 0.038, 0.016)),
    ("q10", "HED", (0.027, 0.11, 0.017), (0.053, 0.10, 0.021)),
    ("q50", "HED", (0.10, 0.19, 0.053), (0.091, 0.13, 0.025)),
    ("q90", "HED", (0.24, 0.27, 0.10), (0.15, 0.15, 0.040)),
    ("mean", "RGB", (0.11, 0.30, 0.10), (0.067, 0.17, 0.049)),
    ("std", "RGB", (0.061, 0.12, 0.042), (0.034, 0.063, 0.020)),
    ("energy 1 px", "HED", (0.056, 0.040, 0.030), (0.030, 0.023, 0.013)),
    ("energy 2 px", "HED", (0.070, 0.049, 0.026), (0.039, 0.028, 0.014)),
    ("coherence", "T", (0.33,), (0.19,)),
    ("mean 3x3", "HED", (0.12, 0.19, 0.056), (0.069, 0.11, 0.022)),
    ("std 3x3", "HED", (0.088, 0.065, 0.034), (0.037, 0.031, 0.013)),
    ("energy 3x3", "HED", (0.056, 0.040, 0.030), (0.024, 0.020, 0.010)),
    ("coherence 3x3", "T", (0.33,), (0.10,)),
    ("mean 5x5", "HED", (0.12, 0.19, 0.056), (0.062, 0.10, 0.021)),
    ("std 5x5", "HED", (0.088, 0.065, 0.034), (0.033, 0.029, 0.012)),
    ("energy 5x5", "HED", (0.056, 0.040, 0.030), (0.021, 0.019, 0.009)),
    ("coherence 5x5", "T", (0.33,), (0.085,)),
    ("variation 5x5", "H", (0.058,), (0.026,)),
)
"""The statistics in order: name, channels, and the centre and spread of each over H&E patches of colon, rounded.

H, E, D: the stains; R, G, B: optical density of a colour; T: its mean over the colours. energy: root mean square
gradient at a scale in pixels (1 px where none is named); 3x3, 5x5: over the patches around, as far as they lie in the
view; variation: standard deviation of the patches' means. A token holds (statistic − centre) / spread.
"""

FEATURES: Final = tuple(f"{channel} {name}" for name, channels, _, _ in _GROUPS for channel in channels)
_CENTRES: Final = [centre for _, _, centres, _ in _GROUPS for centre in centres]
_SPREADS: Final = [spread for _, _, _, spreads in _GROUPS for spread in spreads]


def stain_tokens(images: torch.Tensor) -> torch.Tensor:
    """Return the (B, 49, h, w) tokens of (B, 3, 16 h, 16 w) RGB ``images`` in [0, 1]; the same on every device."""
    values = statistics(images)
    centre = values.new_tensor(_CENTRES).view(1, -1, 1, 1)
    spread = values.new_tensor(_SPREADS).view(1, -1, 1, 1)
    return (values - centre) / spread


def statistics(images: torch.Tensor) -> torch.Tensor:
    """Return the statistics themselves, (B, 49, h, w), in the order of ``FEATURES`` and not yet scaled."""
    density = optical_density(images)
    stains = separated(density)
    values = _patches(stains)
    mean, spread = values.mean(-1), values.std(-1, correction=0)
    ranked = values.sort(-1).values[..., list(_RANKS)]
    quantiles = ranked.permute(0, 4, 1, 2, 3).flatten(1, 2)
    channels = _patches(density)
    fine, coarse = _energy(stains, 1), _energy(stains, 2)
    coherence = _coherence(density.mean(1, keepdim=True))
    around = torch.cat([mean, spread, fine, coherence], dim=1)
    return torch.cat(
        [
            mean,
            spread,
            quantiles,
            channels.mean(-1),
            channels.std(-1, correction=0),
            fine,
            coarse,
            coherence,
            _neighbourhood(around, 3),
            _neighbourhood(around, 5),
            _variation(mean[:, :1], 5),
        ],
        dim=1,
    )


def optical_density(images: torch.Tensor) -> torch.Tensor:
    """Return −log10 of the transmitted light, with (255 x + 1)/256 for x so that black stays finite (2.41)."""
    return -torch.log10((255.0 * images + 1.0) / 256.0)


def separated(density: torch.Tensor) -> torch.Tensor:
    """Return the amounts (B, 3, H, W) of haematoxylin, eosin and DAB in (B, 3, H, W) optical density.

    They solve density = amounts · stains; a small negative amount means a colour outside of the three.
    """
    stains = F.normalize(torch.tensor(_STAINS, dtype=torch.float64), dim=1)
    unmix = torch.linalg.inv(stains).to(density)
    return torch.stack([_weighted(density, unmix[:, stain]) for stain in range(3)], dim=1)


def _weighted(density: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Return the (B, H, W) sum of the three channels, each times its factor."""
    return density[:, 0] * factors[0] + density[:, 1] * factors[1] + density[:, 2] * factors[2]


def _patches(picture: torch.Tensor) -> torch.Tensor:
    """Return (B, C, h, w, 256): the pixels of every patch."""
    batch, channels, height, width = picture.shape
    cells = picture.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return cells.transpose(3, 4).flatten(4)


def _gradient(picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the central differences along x and y, with the rim repeated."""
    padded = F.pad(picture, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return across, down


def _energy(stains: torch.Tensor, scale: int) -> torch.Tensor:
    """Return (B, 3, h, w): root mean square gradient of each stain at a scale of ``scale`` pixels."""
    across, down = _gradient(F.avg_pool2d(stains, scale))
    return F.avg_pool2d(across.square() + down.square(), PATCH // scale).sqrt()


def _coherence(picture: torch.Tensor) -> torch.Tensor:
    """Return (B, 1, h, w): how far the gradients of a patch share one direction, 0 to 1 (structure tensor)."""
    across, down = _gradient(picture)
    xx, yy, xy = (F.avg_pool2d(g, PATCH) for g in (across * across, down * down, across * down))
    return ((xx - yy).square() + 4 * xy.square()).sqrt() / (xx + yy + 1e-6)


def _neighbourhood(grid: torch.Tensor, side: int) -> torch.Tensor:
    """Return the mean over ``side`` × ``side`` patches around each, counting those in the view."""
    return F.avg_pool2d(grid, side, stride=1, padding=side // 2, count_include_pad=False)


def _variation(grid: torch.Tensor, side: int) -> torch.Tensor:
    """Return the standard deviation over ``side`` × ``side`` patches around each."""
    mean = _neighbourhood(grid, side)
    return (_neighbourhood(grid.square(), side) - mean.square()).clamp_min(0.0).sqrt()
