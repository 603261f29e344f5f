"""Counts and the Dice made of them, against torchmetrics and at their edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmetrics.segmentation import DiceScore

from stages.metrics import counts, mean_dice, pooled_dice
from store.errors import InputError


def masks(seed: int, labels: list[int], tiles: int = 5) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).choice(labels, size=(tiles, 9, 11)).astype(np.uint8)


def reference(prediction: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int) -> list[float]:
    """The pooled Dice of torchmetrics, which knows no ignored pixels: they are left out beforehand."""
    kept = truth != 255
    metric = DiceScore(num_classes=classes, average="none", input_format="index", aggregation_level="global")
    metric.update(
        torch.from_numpy(prediction[kept].astype(np.int64))[None],
        torch.from_numpy(truth[kept].astype(np.int64))[None],
    )
    return [float(value) for value in metric.compute()]


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 1, 2, 255], [0, 2, 255, 255]], ids=str)
@pytest.mark.parametrize("predicted", [[0, 1, 2], [0, 1], [2]], ids=str)
def test_pooled_dice_equals_torchmetrics(labels: list[int], predicted: list[int]) -> None:
    truth, prediction = masks(1, labels), masks(2, predicted)
    np.testing.assert_allclose(
        pooled_dice(counts(prediction, truth, 3)), reference(prediction, truth, 3), rtol=1e-6
    )


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_the_definition(seed: int) -> None:
    truth, prediction = masks(seed, [0, 1, 2, 3, 255]), masks(seed + 50, [0, 1, 2, 3])
    found = counts(prediction, truth, 4)
    assert found.dtype == np.int64 and found.shape == (5, 4, 3)
    for tile in range(5):
        kept = truth[tile] != 255
        for c in range(4):
            p, t = (prediction[tile] == c) & kept, (truth[tile] == c) & kept
            assert found[tile, c].tolist() == [(p & t).sum(), p.sum(), t.sum()]


def test_a_perfect_prediction_has_dice_one() -> None:
    truth = masks(3, [0, 1, 2])
    assert pooled_dice(counts(truth, truth, 3)).tolist() == [1.0, 1.0, 1.0]


def test_a_class_in_neither_truth_nor_prediction_is_no_number_and_not_averaged() -> None:
    truth = masks(3, [0, 1])
    counted = counts(truth, truth, 3)
    assert pooled_dice(counted)[:2].tolist() == [1.0, 1.0]
    assert np.isnan(pooled_dice(counted)[2])
    assert mean_dice(counted) == 1.0


def test_a_class_that_only_the_prediction_holds_is_zero_and_in_no_mean() -> None:
    truth, prediction = np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4), np.uint8)
    prediction[0, 0, 0] = 1
    counted = counts(prediction, truth, 2)
    assert pooled_dice(counted)[1] == 0
    assert mean_dice(counted) == pytest.approx(30 / 31)


def test_nothing_but_ignored_pixels_counts_nothing() -> None:
    truth = np.full((2, 4, 4), 255, np.uint8)
    counted = counts(np.zeros((2, 4, 4), np.int64), truth, 3)
    assert not counted.any()
    assert np.isnan(mean_dice(counted))


def test_pooling_weighs_pixels_and_not_tiles() -> None:
    truth, prediction = np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8)
    truth[0], prediction[0] = 1, 1
    truth[1, 0, 0] = 1
    assert pooled_dice(counts(prediction, truth, 2))[1] == pytest.approx(2 * 16 / (16 + 17))


@pytest.mark.parametrize(("prediction", "truth"), [(3, 0), (-1, 0), (0, 3), (0, 254)])
def test_labels_that_are_no_class_are_refused(prediction: int, truth: int) -> None:
    with pytest.raises(InputError, match="there are 3 classes"):
        counts(np.full((1, 2, 2), prediction, np.int64), np.full((1, 2, 2), truth, np.uint8), 3)


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="same pixels"):
        counts(np.zeros((1, 2, 2), np.int64), np.zeros((1, 2, 3), np.uint8), 3)
