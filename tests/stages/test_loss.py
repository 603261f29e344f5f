"""The losses against their rules written down independently in float64, and at their edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.training import loss as losses
from stages.training.loss import LOSSES
from stages.training.settings import TrainSettings
from store.errors import InputErrors

every_loss = pytest.mark.parametrize("name", sorted(LOSSES))
ce_dice = LOSSES["ce+dice"]


def written_rule(name: str, logits: NDArray[np.float64], truth: NDArray[np.uint8]) -> float:
    """Pixel by pixel, class by class."""
    classes = logits.shape[1]
    kept = [(b, y, x) for b, y, x in np.ndindex(*truth.shape) if truth[b, y, x] != 255]
    if not kept:
        return 0.0
    p = {at: np.exp(logits[at[0], :, at[1], at[2]]) for at in kept}
    p = {at: e / e.sum() for at, e in p.items()}
    if name == "focal":
        return float(-sum((1 - p[at][truth[at]]) ** 2 * np.log(p[at][truth[at]]) for at in kept) / len(kept))
    entropy = -sum(np.log(p[at][truth[at]]) for at in kept) / len(kept)
    losses = []
    for c in range(classes):
        members = [at for at in kept if truth[at] == c]
        if members:
            agreed = sum(p[at][c] for at in members)
            losses.append(1 - 2 * agreed / (sum(p[at][c] for at in kept) + len(members)))
    return float({"ce": entropy, "dice": np.mean(losses), "ce+dice": entropy + np.mean(losses)}[name])


def problem(labels: list[int], classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(0)
    truth = draw.choice(labels, size=(3, 7, 5)).astype(np.uint8)
    logits = torch.from_numpy(draw.normal(0, 2, size=(3, classes, 7, 5)))
    return logits, torch.from_numpy(truth)


@every_loss
@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 3], [0, 1, 2, 3, 255], [1, 255], [2], [0, 3, 255, 255, 255]], ids=str
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_loss_is_the_written_rule(name: str, labels: list[int], channels_last: bool) -> None:
    logits, truth = problem(labels)
    if channels_last:
        logits = logits.to(memory_format=torch.channels_last)
    expected = written_rule(name, logits.numpy(), truth.numpy())
    assert LOSSES[name](logits, truth).item() == pytest.approx(expected, rel=1e-12)
    assert LOSSES[name](logits.float(), truth).item() == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_is_torchs() -> None:
    logits, truth = problem([0, 1, 3, 255])
    theirs = F.cross_entropy(logits, truth.long(), ignore_index=255)
    torch.testing.assert_close(LOSSES["ce"](logits, truth), theirs)


def test_dice_is_the_usual_formula_where_every_class_is_there() -> None:
    # as libraries of segmentation losses write it: one-hot truth, sums over batch and pixels, mean over classes
    logits, truth = problem([0, 1, 2, 3])
    p, y = logits.softmax(1).flatten(2), F.one_hot(truth.long(), 4).permute(0, 3, 1, 2).flatten(2)
    score = 2 * (p * y).sum((0, 2)) / (p + y).sum((0, 2))
    torch.testing.assert_close(LOSSES["dice"](logits, truth), (1 - score).mean())


def test_focal_is_the_usual_formula() -> None:
    logits, truth = problem([0, 1, 2, 3])
    entropy = F.cross_entropy(logits, truth.long(), reduction="none")
    torch.testing.assert_close(
        LOSSES["focal"](logits, truth), ((1 - torch.exp(-entropy)) ** 2 * entropy).mean()
    )


def test_the_papers_loss_is_the_sum_of_its_two() -> None:
    logits, truth = problem([0, 1, 3, 255])
    both = LOSSES["ce"](logits, truth) + LOSSES["dice"](logits, truth)
    torch.testing.assert_close(ce_dice(logits, truth), both)


@every_loss
def test_gradients_pass_gradcheck(name: str) -> None:
    logits, truth = problem([0, 1, 3, 255])
    logits, truth = logits[:, :, :3, :4].contiguous(), truth[:, :3, :4]
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, truth), logits.requires_grad_())


@given(
    cuts=st.lists(st.integers(1, 4), max_size=3),
    seed=st.integers(0, 999),
    name=st.sampled_from(sorted(LOSSES)),
)
@settings(max_examples=40, deadline=None)
def test_statistics_of_pieces_add_up_to_loss_and_gradient_of_the_whole(
    cuts: list[int], seed: int, name: str
) -> None:
    draw = np.random.default_rng(seed)
    truth = torch.from_numpy(draw.choice([0, 1, 2, 255], size=(5, 3, 4)).astype(np.uint8))
    logits = torch.from_numpy(draw.normal(0, 2, size=(5, 3, 3, 4))).requires_grad_()
    loss = LOSSES[name]
    loss(logits, truth).backward()  # type: ignore[no-untyped-call]
    whole, logits.grad = logits.grad, None

    pieces = np.split(np.arange(5), sorted(set(cuts)))
    total = sum(loss.statistics(logits[piece].detach(), truth[piece]) for piece in pieces if len(piece))
    assert isinstance(total, torch.Tensor)
    total.requires_grad_()
    value = loss.value(total)
    value.backward()  # type: ignore[no-untyped-call]
    for piece in pieces:
        if len(piece):
            loss.statistics(logits[piece], truth[piece]).backward(total.grad)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(value, loss(logits, truth), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logits.grad, whole, rtol=1e-10, atol=1e-12)


@every_loss
def test_ignored_pixels_have_no_say(name: str) -> None:
    logits, truth = problem([0, 1, 2, 255])
    changed = torch.where((truth == 255).unsqueeze(1), 50 * torch.randn_like(logits), logits)
    assert LOSSES[name](changed, truth) == LOSSES[name](logits, truth)
    logits.requires_grad_()
    LOSSES[name](logits, truth).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad.permute(0, 2, 3, 1)[truth == 255].any()


@every_loss
def test_nothing_but_ignored_pixels_gives_zero_loss_and_zero_gradients(name: str) -> None:
    logits, truth = problem([255])
    logits.requires_grad_()
    loss = LOSSES[name](logits, truth)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_dice_pools_the_batch_and_not_its_tiles() -> None:
    logits, truth = problem([0, 1])
    truth[1:] = 0
    apart = np.mean([ce_dice(logits[i : i + 1], truth[i : i + 1]).item() for i in range(3)])
    assert ce_dice(logits, truth).item() != pytest.approx(apart, rel=1e-3)


@every_loss
def test_perfect_prediction_loses_nothing(name: str) -> None:
    _, truth = problem([0, 1, 2, 3])
    logits = (100.0 * F.one_hot(truth.long(), 4)).permute(0, 3, 1, 2)
    assert LOSSES[name](logits, truth).item() == pytest.approx(0, abs=1e-6)


@every_loss
def test_half_precision_logits_are_summed_in_float32(name: str) -> None:
    logits, truth = problem([0, 1, 2, 3])
    half = logits.bfloat16()
    loss = LOSSES[name](half, truth)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(written_rule(name, half.double().numpy(), truth.numpy()), rel=1e-5)


@every_loss
def test_a_diverged_prediction_shows_in_the_loss(name: str) -> None:
    logits, truth = problem([0, 1, 2, 3])
    logits[0, 0, 0, 0] = float("nan")
    assert not torch.isfinite(LOSSES[name](logits, truth))


def test_an_unknown_loss_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputErrors, match=r"loss is 'hinge'.*Choose one of ce\+dice, ce, dice, focal"):
        TrainSettings(loss="hinge")


def found_with(
    monkeypatch: pytest.MonkeyPatch, way: str, name: str, logits: torch.Tensor, truth: torch.Tensor
) -> list[torch.Tensor]:
    """Loss, statistics and gradient with the true class picked in that way, on whatever device."""
    monkeypatch.setattr(losses, "_gathered", ways[way])
    logits = logits.clone().requires_grad_()
    statistics = LOSSES[name].statistics(logits, truth)
    value = LOSSES[name].value(statistics)
    value.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    return [value, statistics, logits.grad]


ways = {"gathered": losses._gathered, "masked": losses._masked}


@every_loss
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_way_for_gpus_gives_the_bits_of_a_gather(
    name: str, classes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(classes)
    truth = torch.from_numpy(draw.choice([*range(classes), 255], size=(3, 37, 41)).astype(np.uint8))
    truth[0, :5] = 255
    for scale in (0.1, 3, 90):  # the last saturates: probabilities of exactly 1
        logits = torch.from_numpy(draw.normal(0, scale, size=(3, classes, 37, 41))).to(dtype)
        gathered, masked = (found_with(monkeypatch, way, name, logits, truth) for way in ways)
        assert all(torch.equal(one, other) for one, other in zip(gathered, masked, strict=True))


def test_the_way_for_gpus_needs_no_sorted_sum_and_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_gathered", losses._masked)
    with torch.device("meta"):  # where there are no values to look at
        logits = torch.empty(2, 3, 8, 8, requires_grad=True)
        truth = torch.empty(2, 8, 8, dtype=torch.uint8)
    with torch.profiler.profile() as profile:
        LOSSES["ce+dice"](logits, truth).backward()  # type: ignore[no-untyped-call]
    called = {event.key for event in profile.key_averages()}
    sorting = {
        f"aten::{name}" for name in ("gather", "scatter_add", "scatter_add_", "index_put", "index_put_")
    }
    assert "aten::log_softmax" in called
    assert not called & {*sorting, "aten::_local_scalar_dense"}
