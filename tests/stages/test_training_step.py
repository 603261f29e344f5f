"""A batch that is worked on piece by piece gives the gradients of the whole batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_problem import run

from stages.decoders import Geometry, build_decoder
from stages.training.footprint import OVERHEAD, step_bytes, tiles_at_once
from stages.training.loss import LOSSES
from stages.training.settings import TrainSettings
from stages.training.step import backward
from store.errors import InputError

PAPER = Geometry(width_in=1024, grid=(32, 32), target_px=512, frame_px=512, classes=3)


def gradients(
    loss: str, tiles: int, at_once: int, seed: int, absent: bool
) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of a linear decoder in float64, of a batch with ignored pixels."""
    torch.manual_seed(seed)
    decoder = build_decoder("linear", Geometry(4, (3, 3), 12, 12, 3)).double()
    tokens = torch.randn(tiles, 4, 3, 3, dtype=torch.float64)
    truth = torch.randint(0, 2 if absent else 3, (tiles, 12, 12), dtype=torch.uint8)
    truth[:, :2] = 255
    truth[-1] = 255  # a piece without a labelled pixel
    value = backward(decoder, LOSSES[loss], tokens, truth, at_once=at_once, precision="float32")
    return float(value), [parameter.grad for parameter in decoder.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("loss", sorted(LOSSES))
@settings(max_examples=15, deadline=None)
@given(tiles=st.integers(2, 7), at_once=st.integers(1, 6), seed=st.integers(0, 99), absent=st.booleans())
def test_pieces_give_the_loss_and_the_gradients_of_the_whole(
    loss: str, tiles: int, at_once: int, seed: int, absent: bool
) -> None:
    whole, exact = gradients(loss, tiles, tiles, seed, absent)
    value, found = gradients(loss, tiles, at_once, seed, absent)
    assert value == pytest.approx(whole, rel=1e-12)
    assert len(found) == len(exact) == 2
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_a_run_in_pieces_differs_by_rounding_only() -> None:
    whole, pieces = run(), run(at_once=1)
    assert abs(whole.losses - pieces.losses).max() < 1e-4
    for name, weight in whole.weights.items():
        torch.testing.assert_close(pieces.weights[name], weight, rtol=1e-3, atol=1e-4)


def test_no_more_tiles_than_allowed_are_in_the_decoder_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = torch.nn.Conv2d.forward

    def counting(self: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return original(self, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", counting)
    run(at_once=2)
    assert max(seen) == 2


def test_the_bytes_of_a_step_are_those_of_its_largest_maps() -> None:
    map_bytes = 256 * 512 * 512 * 4  # of one tile, behind the last block
    levels = sum(map_bytes / 4**level for level in range(4))
    one, eight = (step_bytes(TrainSettings(), PAPER, tiles) for tiles in (1, 8))
    # Beside the outputs of all blocks there is the gradient of the last.
    assert 8 * (levels + map_bytes) <= eight <= 8 * (levels + map_bytes) * 1.35
    assert (eight - one) / 7 == pytest.approx(levels + map_bytes, rel=0.25)
    textbook = step_bytes(TrainSettings(upconv="textbook"), PAPER, 8)
    assert eight < 0.7 * textbook
    half = step_bytes(TrainSettings(precision="bfloat16"), PAPER, 8)
    assert 0.4 * eight < half < 0.6 * eight


def test_as_many_tiles_at_once_as_fit() -> None:
    settings = TrainSettings(batch=8, decoder="linear")  # whose bytes are counted in no time
    needs = [OVERHEAD * step_bytes(settings, PAPER, tiles) for tiles in range(1, 9)]
    assert needs == sorted(needs)
    for tiles in (1, 3, 8):
        assert tiles_at_once(settings, PAPER, int(needs[tiles - 1]) + 1) == tiles
    assert tiles_at_once(settings, PAPER, 1 << 40) == 8


def test_a_tile_that_does_not_fit_is_refused_with_what_it_needs() -> None:
    with pytest.raises(InputError, match=r"single tile takes about 1\.\d GiB, and 512 MiB are left"):
        tiles_at_once(TrainSettings(), PAPER, 1 << 29)
    for limit, left in ((3000, "3 KiB"), (-5, "0 bytes")):
        with pytest.raises(InputError, match=f"and {left} are left"):
            tiles_at_once(TrainSettings(decoder="linear"), PAPER, limit)


def test_a_step_in_bfloat16_keeps_float32_weights_and_gradients() -> None:
    torch.manual_seed(0)
    decoder = build_decoder("single-scale", Geometry(8, (8, 8), 16, 16, 3), width=8)
    truth = torch.randint(0, 3, (3, 16, 16), dtype=torch.uint8)
    value = backward(
        decoder, LOSSES["ce+dice"], torch.randn(3, 8, 8, 8), truth, at_once=2, precision="bfloat16"
    )
    assert value.dtype == torch.float32
    assert {parameter.grad.dtype for parameter in decoder.parameters() if parameter.grad is not None} == {
        torch.float32
    }
