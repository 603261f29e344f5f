"""Intervals, comparisons and ranks: against scipy and by hand, the same each time, silent where nothing is known."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from stages.evidence import Resampling, assess, holm, percentile_interval
from stages.evidence.comparing import compare
from stages.evidence.words import comparison_sentence, listed, p_phrase, p_text
from stages.metrics import mean_dice
from store.errors import InputError


def counts(
    seed: int, tiles: int = 10, seeds: int = 3, recall: float = 0.8, classes: int = 3
) -> NDArray[np.int64]:
    """Counts (seeds, tiles, classes, 3); the truth is the same for every ``seed``."""
    truth = np.random.default_rng(99).integers(1000, 9000, (tiles, classes))
    rng = np.random.default_rng(seed)
    found = np.clip(rng.normal(recall, 0.06, (seeds, tiles, classes)), 0, 1)
    right = (found * truth).astype(np.int64)
    wrong = truth - right
    prediction = right + (wrong.sum(axis=-1, keepdims=True) - wrong) // (classes - 1)
    return np.stack([right, prediction, np.broadcast_to(truth, right.shape)], axis=-1)


def images(tiles: int = 10) -> list[str]:
    return [f"image {number}" for number in range(tiles)]


def test_resamples_hold_as_many_clusters_as_there_are_and_weigh_their_tiles_together() -> None:
    drawn = Resampling.of(["a", "a", "b", "c"], np.ones((4, 2), np.int64), 500)
    assert drawn.clusters == 3
    assert (drawn.weights.sum(axis=1) == 3).all()
    assert drawn.member.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert abs(drawn.weights.mean() - 1) < 1e-9
    assert len({tuple(row) for row in drawn.weights.tolist()}) == 10  # all multisets of 3 out of 3


def test_the_dice_of_a_resample_is_that_of_its_tiles_repeated() -> None:
    counted = counts(1, tiles=4)
    drawn = Resampling.of(["a", "a", "b", "c"], counted[0, :, :, 2], 50)
    means, _ = drawn.scores(counted)
    for weights, mean in zip(drawn.weights, means.mean(axis=1), strict=True):
        tiles = [t for t, cluster in enumerate([0, 0, 1, 2]) for _ in range(int(weights[cluster]))]
        assert mean == pytest.approx(np.mean([mean_dice(seed[tiles]) for seed in counted]))


def test_a_resample_holds_every_class_that_the_test_set_has() -> None:
    truth = np.array([[5, 5, 0], [5, 0, 0], [5, 0, 0], [5, 5, 0]])
    drawn = Resampling.of(images(4), truth, 1000)
    assert len(drawn.weights) == 1000
    held = drawn.weights @ (truth > 0)
    assert (held[:, :2] > 0).all()
    assert (held[:, 2] == 0).all()  # a class that the test set lacks asks for nothing


def test_where_hardly_any_resample_has_all_classes_there_are_no_intervals() -> None:
    tiles = 30
    counted = np.zeros((1, tiles, tiles, 3), np.int64)
    counted[0, np.arange(tiles), np.arange(tiles)] = 7  # each class in one image only
    found = assess({"a": counted, "b": counted}, images(tiles))
    assert found.resamples == 0
    assert found.mean == {"a": None, "b": None}
    assert found.ranks == {}
    assert found.comparisons[0].p is None


def test_everything_is_the_same_each_time_and_another_encoder_changes_no_interval() -> None:
    one = assess({"a": counts(1), "b": counts(2)}, images())
    again = assess({"a": counts(1), "b": counts(2)}, images())
    assert (one.mean, one.by_class, one.comparisons, one.ranks) == (
        again.mean,
        again.by_class,
        again.comparisons,
        again.ranks,
    )
    more = assess({"c": counts(3), "a": counts(1), "b": counts(2)}, images())
    assert more.mean["a"] == one.mean["a"]
    assert assess({"a": counts(1)}, [*images(9), "other"]).seed != one.seed


def test_the_interval_is_wider_than_plain_percentiles_and_holds_the_estimate() -> None:
    draws = np.random.default_rng(0).normal(0.5, 0.1, 200_000)
    plain = np.quantile(draws, [0.025, 0.975])
    for clusters in (2, 6, 10, 1000):
        interval = percentile_interval(draws, clusters)
        assert interval is not None
        assert interval.low < 0.5 < interval.high
        reach = stats.t.ppf(0.975, clusters - 1) * np.sqrt(clusters / (clusters - 1)) * 0.1
        if clusters > 2:
            assert interval.high - 0.5 == pytest.approx(reach, rel=0.03)
    assert percentile_interval(draws, 10**6) == pytest.approx(plain, abs=1e-3)


def test_one_image_has_no_interval_no_comparison_and_no_ranks() -> None:
    found = assess({"a": counts(1, tiles=1), "b": counts(2, tiles=1)}, ["only"])
    assert found.mean == {"a": None, "b": None}
    assert found.by_class["a"] == (None, None, None)
    assert (found.comparisons[0].interval, found.comparisons[0].p, found.comparisons[0].p_holm) == (None,) * 3
    assert not found.comparisons[0].told_apart
    assert found.ranks == {}


def test_tiles_of_one_patient_count_once() -> None:
    tiles = np.repeat(counts(1, tiles=5), 4, axis=1)
    as_patients = assess({"a": tiles}, [f"patient {n // 4}" for n in range(20)]).mean["a"]
    as_images = assess({"a": tiles}, images(20)).mean["a"]
    assert as_patients is not None and as_images is not None
    assert as_patients.high - as_patients.low > 1.5 * (as_images.high - as_images.low)


def test_encoders_are_compared_over_the_seeds_that_both_have() -> None:
    five, one = counts(1, seeds=5), counts(2, seeds=1)
    found = assess({"a": five, "b": one}, images(), seeds={"a": range(5), "b": [3]})
    alone = assess({"a": five[3:4], "b": one}, images())
    (pair,) = found.comparisons
    assert (pair.seeds, pair.all_seeds, found.ranked_seeds) == ((3,), False, (3,))
    assert (pair.difference, pair.interval, pair.p) == (
        alone.comparisons[0].difference,
        alone.comparisons[0].interval,
        alone.comparisons[0].p,
    )
    assert found.ranks == alone.ranks
    assert "; over the seed that both have)" in comparison_sentence(pair, "10 images", 1)
    # The interval of an encoder alone is over all of its seeds.
    assert found.mean["a"] == assess({"a": five}, images()).mean["a"] != alone.mean["a"]


def test_the_better_one_is_the_better_over_common_seeds() -> None:
    lucky = np.concatenate([counts(1, seeds=1, recall=0.5), counts(2, seeds=1, recall=0.95)])
    found = assess({"a": lucky, "b": counts(3, seeds=1, recall=0.6)}, images()).comparisons[0]
    assert (found.a, found.b) == ("b", "a") and found.difference > 0
    same = assess({"a": lucky, "b": lucky[:1]}, images()).comparisons[0]
    assert same.p == 1.0 and not same.told_apart  # it is the same run, of which one has another beside it


def test_without_a_common_seed_nothing_is_tested() -> None:
    made = {"a": counts(1, seeds=1), "b": counts(2, seeds=1)}
    found = assess(made, images(), seeds={"a": [0], "b": [1]})
    (pair,) = found.comparisons
    assert pair.p is None and pair.interval is None and found.ranks == {}
    assert comparison_sentence(pair, "10 images", 1).endswith("have no seed in common, and are not compared.")


def test_encoders_that_were_tested_on_other_truth_are_refused() -> None:
    other = counts(2)
    other[:, 0, 0, 2] += 1
    with pytest.raises(InputError, match="b was not tested on the same pixels as a"):
        assess({"a": counts(1), "b": other}, images())


def test_pairing_finds_a_small_steady_difference_between_hard_and_easy_images() -> None:
    rng = np.random.default_rng(4)
    ease = rng.uniform(0.3, 0.95, (1, 10, 1))
    truth = np.full((1, 10, 2), 10_000)
    made = {}
    steady = rng.normal(0.02, 0.002, (1, 10, 1))
    for name, plus in (("a", steady), ("b", 0.0)):
        right = ((ease + plus) * truth).astype(np.int64)
        made[name] = np.stack([right, truth, truth], axis=-1)
    found = assess(made, images())
    assert found.comparisons[0].told_apart and found.comparisons[0].a == "a"
    one, other = found.mean["a"], found.mean["b"]
    assert (
        one is not None and other is not None and one.low < other.high
    )  # though their intervals overlap by far


def test_for_a_plain_mean_the_comparison_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.6, 0.1, 12), rng.normal(0.5, 0.1, 12)
    weights = rng.multinomial(12, np.full(12, 1 / 12), 100_000)
    _, _, p = compare((a.mean(), b.mean()), (weights @ a / 12, weights @ b / 12), 12)
    reference = stats.ttest_rel(a, b)
    difference, interval, _ = compare((a.mean(), b.mean()), (weights @ a / 12, weights @ b / 12), 12)
    assert p == pytest.approx(reference.pvalue, rel=0.05)
    assert difference == pytest.approx((a - b).mean())
    assert interval == pytest.approx(tuple(reference.confidence_interval(0.95)), abs=0.002)


def test_an_encoder_is_not_told_apart_from_itself() -> None:
    found = assess({"a": counts(1), "b": counts(1)}, images())
    assert found.comparisons[0].p == 1
    assert [rank.observed for rank in found.ranks.values()] == [1, 1]
    assert found.ranks["a"].first == found.ranks["b"].first == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_its_definition(values: list[float]) -> None:
    order = np.argsort(values, kind="stable")
    wanted = np.empty(len(values))
    for place, index in enumerate(order):
        wanted[index] = max(
            min(1.0, (len(values) - earlier) * values[order[earlier]]) for earlier in range(place + 1)
        )
    np.testing.assert_allclose(np.array(holm(values), dtype=float), wanted)


def test_holm_leaves_out_what_could_not_be_compared() -> None:
    assert holm([0.01, None, 0.02]) == [0.02, None, 0.02]


def test_ranks_are_shares_of_resamples() -> None:
    better = counts(1, recall=0.95)
    found = assess({"a": counts(2, recall=0.7), "b": better, "c": counts(3, recall=0.7)}, images())
    assert found.ranks["b"].observed == 1 and found.ranks["b"].first == 1
    for rank in found.ranks.values():
        assert sum(rank.shares) == pytest.approx(1)
        assert rank.top3 == pytest.approx(1)
        assert rank.interval.low <= rank.observed <= rank.interval.high
    assert found.ranks["a"].first == found.ranks["c"].first == 0


def test_fifteen_encoders_of_ten_seeds_take_seconds() -> None:
    counted = {f"encoder {n}": counts(n, seeds=10) for n in range(15)}
    started = time.perf_counter()
    found = assess(counted, images())
    assert time.perf_counter() - started < 10
    assert len(found.comparisons) == 105


def test_sentences_say_what_was_found() -> None:
    apart = assess({"uni": counts(1, recall=0.95), "stain": counts(2, recall=0.5)}, images()).comparisons[0]
    text = comparison_sentence(apart, "10 images", 1)
    assert text.startswith("uni segments better than stain on these 10 images (")
    alike = assess({"uni": counts(1), "kaiko": counts(2)}, images()).comparisons[0]
    text = comparison_sentence(alike, "10 images", 3)
    assert "cannot be told apart on these 10 images" in text and "after correction for 3 comparisons" in text
    alone = assess({"uni": counts(1, tiles=1), "kaiko": counts(2, tiles=1)}, ["i"]).comparisons[0]
    assert "cannot be compared on 1 image" in comparison_sentence(alone, "1 image", 1)


def test_small_words() -> None:
    assert [p_phrase(p) for p in (0.0004, 0.02)] == ["p < 0.001", "p = 0.02"]
    assert [p_text(p) for p in (0.0004, 0.0123, 0.456, 1.0)] == ["< 0.001", "0.012", "0.46", "1.00"]
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_tiles_without_a_cluster_are_refused() -> None:
    with pytest.raises(InputError, match="3 clusters were given for 10 tiles"):
        assess({"a": counts(1)}, images(3))


def test_differences_without_any_spread_give_no_p_value() -> None:
    truth = np.full((1, 8, 2), 10_000)
    made = {
        name: np.stack([np.full_like(truth, right), truth, truth], axis=-1)
        for name, right in (("a", 9_000), ("b", 8_000), ("c", 8_000))
    }
    by_pair = {(found.a, found.b): found for found in assess(made, images(8)).comparisons}
    assert by_pair["a", "b"].p is None and not by_pair["a", "b"].told_apart
    assert by_pair["b", "c"].p == 1.0
