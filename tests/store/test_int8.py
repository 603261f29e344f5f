"""The int8 form of a grid: how far from the truth it can be, and what it says about that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from store.int8 import TAIL, Int8Error, decode, encode, encoding_error

LARGEST, TINIEST = 65504.0, 2.0**-24


@st.composite
def _channels(draw: st.DrawFn, values: int) -> np.ndarray:
    """One channel of float16 values of one of the kinds that quantisation has trouble with."""
    kind = draw(st.sampled_from(["any", "constant", "ordinary", "outlier", "offset", "tiny", "two values"]))
    finite = hnp.from_dtype(np.dtype(np.float16), allow_nan=False, allow_infinity=False)
    if kind == "any":
        return draw(hnp.arrays(np.float16, values, elements=finite))
    if kind == "constant":
        return np.full(values, draw(finite), np.float16)
    if kind == "two values":
        return draw(hnp.arrays(np.float16, values, elements=st.sampled_from([draw(finite), draw(finite)])))
    noise = np.random.default_rng(draw(st.integers(0, 2**32))).standard_normal(values)
    if kind == "tiny":
        return (noise * 4 * TINIEST).astype(np.float16)
    noise *= 10.0 ** draw(st.integers(-4, 4))
    if kind == "offset":
        noise += draw(st.sampled_from([-1000.0, -3.0, 3.0, 1000.0, 60000.0]))
    if kind == "outlier":
        noise[draw(st.integers(0, values - 1))] *= draw(st.sampled_from([-1000.0, 30.0, 1000.0]))
    return np.clip(noise, -LARGEST, LARGEST).astype(np.float16)


@st.composite
def _grids(draw: st.DrawFn) -> np.ndarray:
    axes = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    channels = draw(st.integers(1, 5))
    rows = [draw(_channels(int(np.prod(axes)))) for _ in range(channels)]
    return np.stack(rows).reshape(channels, *axes)


def _parts(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, scale and zero, taken apart as somebody would who knows the format only."""
    tail = stored[:, -8:].copy().view("<f4")
    return stored[:, :-8], tail[:, :1], tail[:, 1:]


def _half_ulp(values: np.ndarray) -> np.ndarray:
    exponent = np.frexp(values.astype(np.float64))[1] - 1
    return 2.0 ** (np.maximum(exponent, -14) - 11)


@settings(max_examples=400, deadline=None)
@given(_grids())
@example(np.array([[[-LARGEST, TINIEST]]], np.float16))
@example(np.array([[[LARGEST, -LARGEST, 0.0, TINIEST]]], np.float16))
@example(np.array([[[-0.998, 0.0, -0.5]]], np.float16))
def test_no_value_is_further_off_than_half_a_step_and_the_rounding_of_float16(grid: np.ndarray) -> None:
    stored, _ = encode(grid)
    _, scale, _ = _parts(stored)
    was = grid.reshape(len(grid), -1)
    now = decode(stored)
    off = np.abs(now.astype(np.float64) - was.astype(np.float64))
    # The arithmetic in float32 adds less than a thousandth of a step.
    assert (off <= np.abs(scale.astype(np.float64)) * 0.501 + _half_ulp(now)).all()


@settings(max_examples=400, deadline=None)
@given(_grids())
@example(np.array([[[-LARGEST, TINIEST]]], np.float16))
@example(np.array([[[-0.998, 0.0, -0.5]]], np.float16))
@example(np.array([[[5.0, 0.0, 0.3]], [[-5.0, 0.0, -0.3]]], np.float16))
def test_smallest_and_largest_value_come_back_exactly_and_nothing_leaves_their_range(
    grid: np.ndarray,
) -> None:
    was = grid.reshape(len(grid), -1)
    now = decode(encode(grid)[0])
    assert np.array_equal(now.min(axis=1), was.min(axis=1))
    assert np.array_equal(now.max(axis=1), was.max(axis=1))
    assert np.array_equal(
        now[was == was.min(axis=1, keepdims=True)], was[was == was.min(axis=1, keepdims=True)]
    )
    constant = was.min(axis=1) == was.max(axis=1)
    assert np.array_equal(now[constant], was[constant])


@settings(max_examples=200, deadline=None)
@given(_grids())
def test_the_two_lines_of_any_reader_give_the_same_bits(grid: np.ndarray) -> None:
    stored, _ = encode(grid)
    assert stored.shape == (len(grid), grid[0].size + TAIL) and stored.dtype == np.uint8
    steps, scale, zero = _parts(stored)
    values = (steps * scale + zero).astype(np.float16)
    assert values.tobytes() == decode(stored).tobytes()


@settings(max_examples=200, deadline=None)
@given(_grids())
def test_encoding_again_moves_no_value_further_than_encoding_once(grid: np.ndarray) -> None:
    once = decode(encode(grid)[0]).reshape(grid.shape)
    twice = decode(encode(once)[0]).reshape(grid.shape)
    _, scale, _ = _parts(encode(grid)[0])
    drift = np.abs(twice.astype(np.float64) - once.astype(np.float64)).reshape(len(grid), -1)
    assert (drift <= np.abs(scale.astype(np.float64)) * 0.501 + _half_ulp(once.reshape(len(grid), -1))).all()


@settings(max_examples=200, deadline=None)
@given(_grids())
def test_the_error_is_the_one_measured_on_the_decoded_grid(grid: np.ndarray) -> None:
    stored, error = encode(grid)
    was = grid.reshape(len(grid), -1).astype(np.float64)
    off = decode(stored).astype(np.float64) - was
    sigma = was.std(axis=1)
    varies = was.min(axis=1) < was.max(axis=1)
    ratios = np.sqrt((off[varies] ** 2).mean(axis=1)) / sigma[varies]
    assert error.rms == pytest.approx(
        np.sqrt((ratios**2).mean()) if varies.any() else 0.0, rel=2e-3, abs=1e-9
    )
    assert error.worst == pytest.approx(ratios.max(initial=0.0), rel=2e-3, abs=1e-9)


def test_a_normal_channel_loses_less_than_a_hundredth_of_its_deviation() -> None:
    grid = np.random.default_rng(0).standard_normal((64, 37, 37)).astype(np.float16)
    error = encode(grid)[1]
    assert 0.005 < error.rms < error.worst < 0.012


def test_outlying_tokens_cost_the_others_their_precision_and_that_is_said() -> None:
    plain = np.random.default_rng(0).standard_normal((64, 37, 37)).astype(np.float16)
    registers = plain.copy()
    registers[:, (3, 20, 30), (5, 1, 36)] *= 10
    assert encode(registers)[1].rms > 0.01 > 1.2 * encode(plain)[1].rms
    spike = plain.copy()
    spike[7, 3, 5] = 1000
    error = encode(spike)[1]
    assert error.worst > 4 * encode(plain)[1].worst
    assert error.rms == pytest.approx(
        np.sqrt(63 / 64 * encode(plain)[1].rms ** 2 + error.worst**2 / 64), rel=0.01
    )


def test_views_of_one_token_and_constant_views_are_exact() -> None:
    for grid in (np.array([[[3.14]], [[-2.0]], [[0.0]]], np.float16), np.full((2, 4, 4), -7.5, np.float16)):
        stored, error = encode(grid)
        assert np.array_equal(decode(stored).reshape(grid.shape), grid)
        assert error == Int8Error(0.0, 0.0)


def test_a_large_grid_is_encoded_and_decoded_block_by_block_to_the_same_bytes() -> None:
    grid = np.random.default_rng(1).standard_normal((700, 30, 30)).astype(np.float16)
    stored, _ = encode(grid)
    single = np.concatenate([encode(channel[None])[0] for channel in grid])
    assert stored.tobytes() == single.tobytes()
    several = np.stack([stored, stored[::-1]])
    out = np.empty((2, *grid.shape), np.float16)
    assert decode(several, out) is out
    assert out[0].tobytes() == decode(stored).tobytes() and out[1].tobytes() == out[0, ::-1].tobytes()
    assert decode(several).shape == (2, 700, 900)


def test_a_grid_in_another_order_of_memory_is_the_same_grid() -> None:
    grid = np.random.default_rng(2).standard_normal((4, 5, 6)).astype(np.float16)
    turned = np.ascontiguousarray(grid.transpose(2, 1, 0)).transpose(2, 1, 0)
    assert encode(turned)[0].tobytes() == encode(grid)[0].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(value: float) -> None:
    grid = np.zeros((3, 4, 4), np.float16)
    grid[1, 2, 3] = value
    with pytest.raises(ValueError, match="finite"):
        encode(grid)


def test_other_arrays_are_refused() -> None:
    for grid in (np.zeros((3, 4, 4), np.float32), np.zeros(3, np.float16)):
        with pytest.raises(ValueError, match="int8 is made of float16"):
            encode(grid)  # type: ignore[arg-type]
    stored, _ = encode(np.zeros((3, 4, 4), np.float16))
    for out in (
        np.empty((3, 15), np.float16),
        np.empty((3, 16), np.float32),
        np.empty((16, 3), np.float16).T,
    ):
        with pytest.raises(ValueError, match="C-contiguous float16 of 48 values"):
            decode(stored, out)  # type: ignore[arg-type]


def test_the_error_of_a_cache_is_made_of_those_of_its_views() -> None:
    metas = [{"int8": {"rms": 0.002, "worst": 0.02}}, None, {"int8": {"rms": 0.004, "worst": 0.01}}, {"a": 1}]
    found = encoding_error(metas)
    assert found is not None
    assert found.views == 2 and found.mean_rms == pytest.approx(0.003)
    assert found.max_rms == 0.004 and found.worst_channel == 0.02
    assert encoding_error([None, {}]) is None
