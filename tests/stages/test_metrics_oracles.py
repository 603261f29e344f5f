"""Every score equals an independent reckoning, on random masks and on masks that lack classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torchmetrics.classification import MulticlassJaccardIndex, MulticlassPrecision, MulticlassRecall
from torchmetrics.segmentation import DiceScore

from stages import metrics

CLASSES = 4
EPS = 1e-5
Masks = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@st.composite
def masks(draw: Any, ignored: bool = True) -> Masks:
    """Predictions and truths (tiles, 6, 7); each tile shows some of the classes only, so that many are absent."""
    tiles = draw(st.integers(1, 4))
    shown = st.sets(st.integers(0, CLASSES - 1), min_size=1)
    pair = []
    for name in ("prediction", "truth"):
        layers = []
        for _ in range(tiles):
            labels = sorted(draw(shown)) + (
                [255] if ignored and name == "truth" and draw(st.booleans()) else []
            )
            layers.append(draw(arrays(np.uint8, (6, 7), elements=st.sampled_from(labels))))
        pair.append(np.stack(layers))
    return pair[0], pair[1]


def kept(prediction: NDArray[np.uint8], truth: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
    inside = truth != 255
    return torch.from_numpy(prediction[inside].astype(np.int64)), torch.from_numpy(
        truth[inside].astype(np.int64)
    )


def by_definition(
    score: Callable[[float, float, float], float], prediction: NDArray[np.uint8], truth: NDArray[np.uint8]
) -> list[float]:
    """A score of (intersection, prediction, truth) for each class, from sets of pixels."""
    inside = truth != 255
    return [
        score(
            float(((prediction == c) & (truth == c) & inside).sum()),
            float(((prediction == c) & inside).sum()),
            float(((truth == c) & inside).sum()),
        )
        for c in range(CLASSES)
    ]


def mean_over_truth(values: list[float], truth: NDArray[np.uint8]) -> float:
    return mean_of([value for c, value in enumerate(values) if (truth == c).any()])


def mean_of(values: list[float]) -> float:
    present = [value for value in values if not np.isnan(value)]
    return sum(present) / len(present) if present else float("nan")


def dice(i: float, p: float, t: float) -> float:
    return 2 * i / (p + t) if p + t else float("nan")


close = {"rtol": 0, "atol": 1e-6, "equal_nan": True}


@given(masks())
@settings(max_examples=60, deadline=None)
def test_iou_precision_and_recall_equal_torchmetrics_and_are_no_number_where_undefined(pair: Masks) -> None:
    counted = metrics.counts(*pair, CLASSES)
    predicted, true = kept(*pair)
    for ours, theirs, undefined in (
        (metrics.iou, MulticlassJaccardIndex, counted.sum(0)[:, 1] + counted.sum(0)[:, 2] == 0),
        (metrics.precision, MulticlassPrecision, counted.sum(0)[:, 1] + counted.sum(0)[:, 2] == 0),
        (metrics.recall, MulticlassRecall, counted.sum(0)[:, 2] == 0),
    ):
        found = ours(counted)
        assert (np.isnan(found) == undefined).all()
        if predicted.numel():
            reference = theirs(num_classes=CLASSES, average="none")(predicted, true).double().numpy()
            np.testing.assert_allclose(found[~undefined], reference[~undefined], **close)


@given(masks())
@settings(max_examples=60, deadline=None)
def test_pooled_dice_equals_torchmetrics_and_its_mean_is_over_the_classes_of_the_truth(pair: Masks) -> None:
    counted = metrics.counts(*pair, CLASSES)
    predicted, true = kept(*pair)
    if predicted.numel():
        reference = DiceScore(CLASSES, average="none", input_format="index", aggregation_level="global")
        reference.update(predicted[None], true[None])
        np.testing.assert_allclose(
            metrics.pooled_dice(counted), reference.compute().double().numpy(), **close
        )
    values = by_definition(dice, *pair)
    np.testing.assert_allclose(metrics.pooled_dice(counted), values, **close)
    np.testing.assert_allclose(metrics.mean_dice(counted), mean_over_truth(values, pair[1]), **close)


@given(masks())
@settings(max_examples=60, deadline=None)
def test_dice_of_tiles_is_averaged_over_the_classes_of_their_truth(pair: Masks) -> None:
    counted = metrics.counts(*pair, CLASSES)
    each = [by_definition(dice, p[None], t[None]) for p, t in zip(*pair, strict=True)]
    wanted = [mean_over_truth(values, t) for values, t in zip(each, pair[1], strict=True)]
    np.testing.assert_allclose(metrics.tile_dice(counted), wanted, **close)
    by_class = [mean_of([values[c] for values in each]) for c in range(CLASSES)]
    np.testing.assert_allclose(metrics.per_tile_dice(counted), by_class, **close)


@given(masks(ignored=False))
@settings(max_examples=60, deadline=None)
def test_the_rules_of_the_puma_scorer(pair: Masks) -> None:
    """Its rules, as they are written: sums of binary masks in float64, image by image and joined."""
    counted = metrics.counts(*pair, CLASSES)
    micro, image = [], np.zeros((len(pair[0]), CLASSES))
    for c in range(CLASSES):
        one, two = (pair[0] == c).astype(np.float64), (pair[1] == c).astype(np.float64)
        both = (one * two).sum()
        micro.append(0.0 if both == 0 else (2 * both + EPS) / (one.sum() + two.sum() + EPS))
        for tile in range(len(one)):
            a, b = one[tile], two[tile]
            empty = a.sum() == 0 and b.sum() == 0
            image[tile, c] = 1.0 if empty else (2 * (a * b).sum() + EPS) / (a.sum() + b.sum() + EPS)
    np.testing.assert_allclose(metrics.puma_micro_dice(counted), micro, **close)
    np.testing.assert_allclose(metrics.puma_image_dice(counted), image, **close)


def test_a_class_that_is_nowhere_is_left_out_by_us_zero_in_puma_micro_and_one_in_puma_images() -> None:
    truth = np.zeros((2, 4, 4), np.uint8)
    counted = metrics.counts(truth, truth, 2)
    assert np.isnan(metrics.pooled_dice(counted)[1])
    assert metrics.mean_dice(counted) == 1
    assert metrics.puma_micro_dice(counted).tolist() == [1, 0]
    assert metrics.puma_image_dice(counted).tolist() == [[1, 1], [1, 1]]


@given(masks())
@settings(max_examples=40, deadline=None)
def test_counts_follow_from_confusions(pair: Masks) -> None:
    prediction, truth = pair
    found = metrics.confusions(prediction, truth, CLASSES)
    for tile in range(len(truth)):
        for row in range(CLASSES):
            for column in range(CLASSES):
                assert found[tile, row, column] == ((truth[tile] == row) & (prediction[tile] == column)).sum()
    assert np.array_equal(metrics.counts_of(found), metrics.counts(prediction, truth, CLASSES))


@pytest.mark.parametrize(
    "score", ["pooled_dice", "iou", "precision", "recall", "puma_micro_dice", "per_tile_dice"]
)
def test_axes_before_the_tiles_are_kept(score: str) -> None:
    rng = np.random.default_rng(0)
    many = np.stack([
        np.stack([
            metrics.counts(rng.integers(0, 3, (4, 5, 5)), rng.integers(0, 3, (4, 5, 5)).astype(np.uint8), 3)
            for _ in range(2)
        ])
        for _ in range(3)
    ])  # fmt: skip
    found = getattr(metrics, score)(many)
    assert found.shape == (3, 2, 3)
    for a in range(3):
        for b in range(2):
            np.testing.assert_array_equal(found[a, b], getattr(metrics, score)(many[a, b]))
