"""The encoders without weights: pixels and stain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_rows import views
from PIL import Image

from stages.encoders import load_encoder
from stages.encoders.stain import FEATURES, optical_density, separated, statistics
from store.errors import InputError
from store.identity import canonical_json, fingerprint

pytestmark = pytest.mark.usefixtures("one_thread")

MEAN, STD = (np.array(values) for values in ([0.70, 0.55, 0.70], [0.20, 0.25, 0.20]))


def _colours(tokens: torch.Tensor) -> np.ndarray:
    """The mean colour (h, w, 3) in grey levels that the tokens of ``pixels`` (768, h, w) hold."""
    d, h, w = tokens.shape
    pixels = tokens.reshape(16 * 16, 3, h, w).mean(0).permute(1, 2, 0).numpy()
    assert d == 768
    return (pixels * STD + MEAN) * 255


def test_a_pixels_token_is_its_patch_row_by_row_channel_fastest() -> None:
    images = views(2, 48)
    tokens = load_encoder("pixels", tile_px=48).encode(images)
    scaled = (images.numpy() / 255.0 - MEAN[:, None, None]) / STD[:, None, None]
    for row, column in ((0, 0), (1, 2), (2, 1)):
        patch = scaled[1, :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
        np.testing.assert_allclose(
            tokens[1, :, row, column].numpy(), patch.transpose(1, 2, 0).ravel(), atol=1e-5
        )


def test_the_mean_colour_of_a_token_is_that_of_its_patch() -> None:
    colours = torch.randint(0, 256, (3, 7, 7), generator=torch.Generator().manual_seed(0))
    images = colours.repeat_interleave(16, 1).repeat_interleave(16, 2).to(torch.uint8)[None]
    tokens = load_encoder("pixels", tile_px=112).encode(images)
    np.testing.assert_allclose(_colours(tokens[0]), colours.permute(1, 2, 0).numpy(), atol=1e-3)


@pytest.mark.parametrize("tile_px", [100, 120, 250])
def test_resized_tokens_span_exactly_the_tile(tile_px: int) -> None:
    x = np.arange(tile_px) + 0.5
    ramp = np.stack(
        np.broadcast_arrays(20 + 200 * x[None, :] / tile_px, 220 - 200 * x[:, None] / tile_px, 100.0)
    )
    images = torch.from_numpy(np.rint(ramp).astype(np.uint8))[None]
    encoder = load_encoder("pixels", tile_px=tile_px)
    side = encoder.grid.w
    got = _colours(encoder.encode(images)[0])
    centres = (np.arange(side) + 0.5) / side
    np.testing.assert_allclose(
        got[..., 0], np.broadcast_to(20 + 200 * centres[None, :], (side, side)), atol=1.0
    )
    np.testing.assert_allclose(
        got[..., 1], np.broadcast_to(220 - 200 * centres[:, None], (side, side)), atol=1.0
    )


def test_padded_tokens_keep_the_pixels_and_reflect_the_rim() -> None:
    images = views(1, 40)
    tokens = load_encoder("pixels", tile_px=40, fit="pad").encode(images)
    mirrored = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (0, 8), (0, 8)), mode="reflect"))
    assert torch.equal(tokens, load_encoder("pixels", tile_px=48).encode(mirrored))


@pytest.mark.parametrize("name", ["pixels", "stain"])
def test_a_tokens_value_does_not_depend_on_its_batch(name: str) -> None:
    images = views(3, 72)
    encoder = load_encoder(name, tile_px=72)
    together = encoder.encode(images)
    assert torch.equal(together, torch.cat([encoder.encode(image[None]) for image in images]))
    assert together.dtype == torch.float32
    assert together.is_contiguous()


def test_the_stains_are_separated_as_they_were_mixed() -> None:
    matrix = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    amounts = np.random.default_rng(0).uniform(0, 0.8, (3, 8, 8))
    light = 10 ** -np.einsum("syx,sc->cyx", amounts, matrix)
    images = torch.from_numpy((256 * light - 1) / 255)[None]
    np.testing.assert_allclose(separated(optical_density(images))[0].numpy(), amounts, atol=1e-9)


def test_the_statistics_are_those_of_each_patch_and_its_neighbours() -> None:
    images = views(1, 96).double() / 255
    got = dict(zip(FEATURES, statistics(images)[0].numpy(), strict=True))
    density = -np.log10((255 * images[0].numpy() + 1) / 256)
    stains = separated(torch.from_numpy(density)[None])[0].numpy()
    cells = {
        (row, column): stains[:, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16].reshape(3, -1)
        for row in range(6)
        for column in range(6)
    }
    means = np.array([[cells[row, column].mean(1) for column in range(6)] for row in range(6)])
    for number, stain in enumerate("HED"):
        patch = np.sort(cells[2, 3][number])
        assert got[f"{stain} mean"][2, 3] == pytest.approx(patch.mean())
        assert got[f"{stain} std"][2, 3] == pytest.approx(patch.std())
        assert got[f"{stain} q10"][2, 3] == pytest.approx(patch[25])
        assert got[f"{stain} q50"][2, 3] == pytest.approx(patch[127])
        assert got[f"{stain} q90"][2, 3] == pytest.approx(patch[230])
        assert got[f"{stain} mean 3x3"][2, 3] == pytest.approx(means[1:4, 2:5, number].mean())
        assert got[f"{stain} mean 3x3"][0, 0] == pytest.approx(means[:2, :2, number].mean())
        assert got[f"{stain} mean 5x5"][5, 2] == pytest.approx(means[3:, :5, number].mean())
        down, across = np.gradient(stains[number])
        energy = np.sqrt((down**2 + across**2)[32:48, 48:64].mean())
        assert got[f"{stain} energy 1 px"][2, 3] == pytest.approx(energy)
    for number, colour in enumerate("RGB"):
        assert got[f"{colour} mean"][1, 1] == pytest.approx(density[number, 16:32, 16:32].mean())
        assert got[f"{colour} std"][1, 1] == pytest.approx(density[number, 16:32, 16:32].std())
    assert got["H variation 5x5"][2, 2] == pytest.approx(means[:5, :5, 0].std())


def test_coherence_tells_stripes_from_noise() -> None:
    stripes = (np.sin(np.arange(64) / 2)[None, :] * 0.3 + 0.5) * np.ones((3, 64, 64))
    noise = np.random.default_rng(0).uniform(0.2, 0.8, (3, 64, 64))
    found = statistics(torch.from_numpy(np.stack([stripes, noise])))[:, FEATURES.index("T coherence")]
    assert float(found[0].min()) > 0.95
    assert float(found[1].max()) < 0.4


@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_views_have_finite_tokens_that_fit_float16(level: int) -> None:
    for name in ("pixels", "stain"):
        tokens = load_encoder(name, tile_px=64).encode(torch.full((1, 3, 64, 64), level, dtype=torch.uint8))
        assert float(tokens.abs().max()) < 1000


def test_stain_tokens_of_real_tissue_are_of_about_unit_variance_and_tell_glands_apart(shared: Path) -> None:
    """A token-wise linear rule, fitted on one half of the images, finds glands in the other half."""
    encoder = load_encoder("stain", tile_px=432)
    tokens: list[torch.Tensor] = []
    glands: list[torch.Tensor] = []
    for path in sorted((shared / "data" / "he_glas" / "images").glob("*.png"))[::2]:
        image = Image.open(path).convert("RGB")
        if min(image.size) < 432:
            continue
        mask = np.array(Image.open(path.parents[1] / "masks" / path.name))[:432, :432] > 0
        view = torch.from_numpy(np.array(image)[:432, :432]).permute(2, 0, 1)[None]
        tokens.append(encoder.encode(view)[0].flatten(1).T)
        glands.append(torch.from_numpy(mask.reshape(27, 16, 27, 16).mean((1, 3)).ravel() > 0.5).float())
    half = len(tokens) // 2
    fit, test = torch.cat(tokens[:half]).double(), torch.cat(tokens[half:]).double()
    truth_fit, truth = torch.cat(glands[:half]).double(), torch.cat(glands[half:]).bool()
    spread = torch.cat([fit, test]).std(0)
    assert float(spread.min()) > 0.4
    assert float(spread.max()) < 2.0
    centre = fit.mean(0)
    design = fit - centre
    slope = torch.linalg.solve(
        design.T @ design + len(design) * torch.eye(49) * 1e-2, design.T @ (truth_fit - truth_fit.mean())
    )
    found = (test - centre) @ slope + truth_fit.mean() > 0.45
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    everything = 2 * truth.sum() / (len(truth) + truth.sum())
    assert float(dice) > max(0.70, float(everything) + 0.03)


def test_what_makes_no_sense_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="has no weights to load"):
        load_encoder("stain", tile_px=64, weights=tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="computed in float32"):
        load_encoder("pixels", tile_px=64, dtype="bfloat16")
    row = tmp_path / "mine.toml"
    row.write_text(
        'name = "mine"\ntitle = "m"\nfamily = "fixed"\npatch = 16\nd = 3\nlicence = "n"\nsource = "s"\n'
    )
    with pytest.raises(InputError, match="for pixels and stain only"):
        load_encoder(str(row), tile_px=64)


def test_the_identity_of_a_fixed_encoder_follows_its_geometry(tmp_path: Path) -> None:
    choices = [
        ("stain", 64, "resize"),
        ("stain", 60, "resize"),
        ("stain", 60, "pad"),
        ("pixels", 64, "resize"),
    ]
    identities = [load_encoder(name, tile_px=px, fit=fit).identity for name, px, fit in choices]  # type: ignore[arg-type]
    assert len({fingerprint(identity) for identity in identities}) == 4
    encoder = load_encoder("stain", tile_px=64, fit="pad", weights=tmp_path)
    assert encoder.identity == identities[0]
    canonical_json(encoder.provenance)
