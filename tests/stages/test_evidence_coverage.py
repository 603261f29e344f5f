"""Do the intervals hold what they promise? Studies are drawn from a known population of images, again and again."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.evidence import Resampling, assess, holm, percentile_interval
from stages.evidence.comparing import compare
from stages.metrics import mean_dice, mean_of_present

PIXELS, CLASSES, SEEDS, RESAMPLES = 50_000, 3, 3, 1000
BASE = np.array([2.2, 1.4, 0.4])  # how well a class is found, as a logit: 0.90, 0.80, 0.60


def drawn(rng: np.random.Generator, images: int, encoders: int, better: float = 0.0) -> NDArray[np.int64]:
    """Counts (encoders, seeds, images, classes, 3) of images of one population.

    Images differ in what they show (one class is absent from a third of them) and in how hard they are, for every
    encoder alike and for each of its own; ``better`` raises the logit of the first encoder.
    """
    shares = rng.dirichlet([2.0, 2.0, 1.0], images)
    shares[rng.random(images) < 1 / 3, 2] = 0
    shares /= shares.sum(axis=1, keepdims=True)
    logit = BASE + rng.normal(0, 0.8, (images, 1)) + rng.normal(0, 0.5, (encoders, 1, images, CLASSES))
    logit = logit + rng.normal(0, 0.15, (encoders, SEEDS, images, CLASSES))
    logit[0] += better
    found = 1 / (1 + np.exp(-logit))
    truth = np.broadcast_to((shares * PIXELS).astype(np.int64), found.shape)
    right = (found * truth).astype(np.int64)
    wrong = truth - right  # half to each of the other classes
    prediction = right + (wrong.sum(axis=-1, keepdims=True) - wrong) // 2
    return np.stack([right, prediction, truth], axis=-1)


def population(better: float = 0.0) -> float:
    """The mean Dice of the first encoder on all images there are."""
    counted = drawn(np.random.default_rng(1), 100_000, 1, better)
    return float(np.mean([mean_dice(seed) for seed in counted[0]]))


def resampled(counted: NDArray[np.int64]) -> tuple[NDArray[np.float64], Resampling]:
    images = counted.shape[1]
    drawn = Resampling.of([str(image) for image in range(images)], counted[0, :, :, 2], RESAMPLES)
    return mean_of_present(drawn.scores(counted)[0], axis=1), drawn


def estimate(counted: NDArray[np.int64]) -> float:
    return float(mean_of_present(mean_dice(counted), axis=0))


def coverage(images: int, studies: int) -> tuple[float, float, float]:
    """How often the interval holds the truth: ours, and the plain percentiles'; and its mean width."""
    true, rng = population(), np.random.default_rng(7)
    ours = plain = width = 0.0
    for _ in range(studies):
        draws, _ = resampled(drawn(rng, images, 1)[0])
        interval = percentile_interval(draws, images)
        assert interval is not None
        low, high = np.quantile(draws, [0.025, 0.975])
        ours += interval.low <= true <= interval.high
        plain += low <= true <= high
        width += interval.high - interval.low
    return ours / studies, plain / studies, width / studies


def false_alarms(images: int, studies: int, encoders: int) -> tuple[float, float]:
    """How often equal encoders are told apart: of single comparisons, and after Holm of whole studies."""
    rng = np.random.default_rng(8)
    single = pairs = family = 0
    for _ in range(studies):
        counted = drawn(rng, images, encoders)
        scores = [resampled(encoder)[0] for encoder in counted]
        values = [estimate(encoder) for encoder in counted]
        found = [
            compare((values[a], values[b]), (scores[a], scores[b]), images)[2]
            for a in range(encoders)
            for b in range(a)
        ]
        single += sum(p is not None and p < 0.05 for p in found)
        pairs += len(found)
        family += any(p is not None and p < 0.05 for p in holm(found))
    return single / pairs, family / studies


@pytest.mark.slow
@pytest.mark.parametrize(("images", "low"), [(5, 0.83), (6, 0.88), (10, 0.92), (20, 0.93), (40, 0.92)])
def test_the_interval_of_the_mean_dice_holds_the_populations(images: int, low: float) -> None:
    ours, plain, width = coverage(images, 1000)
    print(f"{images} images: {ours:.3f} (plain percentiles {plain:.3f}), mean width {width:.3f}")
    assert low <= ours <= 0.985
    assert ours > plain


@pytest.mark.slow
@pytest.mark.parametrize("images", [5, 6, 10, 20])
def test_equal_encoders_are_seldom_told_apart(images: int) -> None:
    single, family = false_alarms(images, 400, 5)
    print(f"{images} images: single comparisons {single:.3f}, studies of 5 encoders after Holm {family:.3f}")
    assert single <= 0.08
    assert family <= 0.10


@pytest.mark.slow
def test_a_clear_difference_is_found() -> None:
    rng = np.random.default_rng(9)
    gap = population(0.8) - population()
    found = 0
    for _ in range(200):
        counted = drawn(rng, 10, 2, better=0.8)
        evidence = assess({"a": counted[0], "b": counted[1]}, [str(n) for n in range(10)], RESAMPLES)
        found += evidence.comparisons[0].told_apart and evidence.comparisons[0].a == "a"
    print(f"a difference of {gap:.3f} on 10 images is found in {found / 200:.2f} of the studies")
    assert gap > 0.05 and math.isfinite(gap)
    assert found / 200 > 0.85
