"""The loss against the rule written down independently in float64, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stages.training.loss import cross_entropy_dice


def written_rule(logits: NDArray[np.float64], truth: NDArray[np.uint8]) -> float:
    """Pixel by pixel, class by class."""
    classes = logits.shape[1]
    kept = [(b, y, x) for b, y, x in np.ndindex(*truth.shape) if truth[b, y, x] != 255]
    if not kept:
        return 0.0
    p = {at: np.exp(logits[at[0], :, at[1], at[2]]) for at in kept}
    p = {at: e / e.sum() for at, e in p.items()}
    entropy = -sum(np.log(p[at][truth[at]]) for at in kept) / len(kept)
    losses = []
    for c in range(classes):
        members = [at for at in kept if truth[at] == c]
        if members:
            agreed = sum(p[at][c] for at in members)
            losses.append(1 - 2 * agreed / (sum(p[at][c] for at in kept) + len(members)))
    return float(entropy + np.mean(losses))


def problem(labels: list[int], classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(0)
    truth = draw.choice(labels, size=(3, 7, 5)).astype(np.uint8)
    logits = torch.from_numpy(draw.normal(0, 2, size=(3, classes, 7, 5)))
    return logits, torch.from_numpy(truth)


@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 3], [0, 1, 2, 3, 255], [1, 255], [2], [0, 3, 255, 255, 255]], ids=str
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_loss_is_the_written_rule(labels: list[int], channels_last: bool) -> None:
    logits, truth = problem(labels)
    if channels_last:
        logits = logits.to(memory_format=torch.channels_last)
    expected = written_rule(logits.numpy(), truth.numpy())
    assert cross_entropy_dice(logits, truth).item() == pytest.approx(expected, rel=1e-12)
    assert cross_entropy_dice(logits.float(), truth).item() == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_part_is_torchs() -> None:
    logits, truth = problem([1, 255])
    # one class only: its Dice is known in closed form, what remains is the cross-entropy
    p = logits.softmax(1)[:, 1][truth == 1]
    dice = 2 * p.sum() / (p.sum() + len(p))
    entropy = torch.nn.functional.cross_entropy(logits, truth.long(), ignore_index=255)
    torch.testing.assert_close(cross_entropy_dice(logits, truth), entropy + 1 - dice)


def test_gradient_passes_gradcheck() -> None:
    logits, truth = problem([0, 1, 3, 255])
    logits, truth = logits[:, :, :3, :4].contiguous(), truth[:, :3, :4]
    assert torch.autograd.gradcheck(lambda x: cross_entropy_dice(x, truth), logits.requires_grad_())


def test_ignored_pixels_have_no_say() -> None:
    logits, truth = problem([0, 1, 2, 255])
    changed = torch.where((truth == 255).unsqueeze(1), 50 * torch.randn_like(logits), logits)
    assert cross_entropy_dice(changed, truth) == cross_entropy_dice(logits, truth)
    logits.requires_grad_()
    cross_entropy_dice(logits, truth).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad.permute(0, 2, 3, 1)[truth == 255].any()


def test_nothing_but_ignored_pixels_gives_zero_loss_and_zero_gradients() -> None:
    logits, truth = problem([255])
    logits.requires_grad_()
    loss = cross_entropy_dice(logits, truth)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_dice_pools_the_batch_and_not_its_tiles() -> None:
    logits, truth = problem([0, 1])
    truth[1:] = 0
    apart = np.mean([cross_entropy_dice(logits[i : i + 1], truth[i : i + 1]).item() for i in range(3)])
    assert cross_entropy_dice(logits, truth).item() != pytest.approx(apart, rel=1e-3)
    assert cross_entropy_dice(logits, truth).item() == pytest.approx(
        written_rule(logits.numpy(), truth.numpy())
    )


def test_perfect_prediction_loses_nothing() -> None:
    _, truth = problem([0, 1, 2, 3])
    logits = 100.0 * torch.nn.functional.one_hot(truth.long(), 4).permute(0, 3, 1, 2)
    assert cross_entropy_dice(logits, truth).item() == pytest.approx(0, abs=1e-6)


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, truth = problem([0, 1, 2, 3])
    half = logits.bfloat16()
    loss = cross_entropy_dice(half, truth)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(written_rule(half.double().numpy(), truth.numpy()), rel=1e-5)


def test_a_diverged_prediction_shows_in_the_loss() -> None:
    logits, truth = problem([0, 1, 2, 3])
    logits[0, 0, 0, 0] = float("nan")
    assert not torch.isfinite(cross_entropy_dice(logits, truth))
