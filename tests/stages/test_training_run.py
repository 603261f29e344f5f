"""A run of stage two: it learns, it is decided by its seed alone, and it refuses what it cannot use."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from training_problem import CLASSES, GEOMETRY, PX, QUICK, equal, run, split

from stages.decoders import build_decoder
from stages.metrics import counts, mean_dice, pooled_dice
from stages.training.result import Diverged, EpochReport
from stages.training.run import _reproducible, initial_decoder
from stages.training.settings import TrainSettings
from store.errors import InputError, InputErrors

LEARN = TrainSettings(options={"width": 16}, epochs=15, validate_every=5, lr=1e-2, batch=4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_decoder_learns_tokens_that_name_their_class(precision: Any) -> None:
    result = run(replace(LEARN, precision=precision))
    assert result.losses[-1] < 0.2 * result.losses[0]
    best = result.validated.tolist().index(result.best_epoch)
    assert mean_dice(result.test_counts[best]) > 0.95


def test_the_linear_decoder_learns_too() -> None:
    result = run(replace(LEARN, decoder="linear", options={}, lr=0.1))
    assert result.parameters == 3 * 3 + 3
    assert mean_dice(result.test_counts[-1]) > 0.85


def test_fast_and_textbook_form_train_alike() -> None:
    fast, textbook = (run(replace(QUICK, upconv=mode)) for mode in ("fast", "textbook"))
    np.testing.assert_allclose(fast.losses, textbook.losses, rtol=1e-4)
    assert not equal(fast, textbook)


def test_one_seed_gives_one_result_whatever_ran_before() -> None:
    torch.manual_seed(1)
    alone = run(seed=7)
    torch.manual_seed(2)
    others = [run(seed=8), run(replace(QUICK, decoder="linear", options={}), seed=7)]
    assert equal(alone, run(seed=7))
    assert not equal(alone, others[0])


def test_cuda_graphs_are_refused_where_there_are_none() -> None:
    with pytest.raises(InputError, match="the device is cpu, which has no CUDA graphs"):
        run(replace(QUICK, cuda_graphs=True))


@pytest.fixture
def filled() -> Iterator[None]:
    """Torch fills new memory with NaN, or the largest number."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(9).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("mode", ["fast", "textbook"])
def test_a_run_reads_no_memory_before_it_is_written(mode: Any, request: pytest.FixtureRequest) -> None:
    settings = replace(QUICK, upconv=mode)
    usual = run(settings)
    request.getfixturevalue("filled")
    assert equal(run(settings), usual)


def test_on_a_gpu_order_is_fixed_and_new_memory_not_filled_for_the_run_only() -> None:
    def state() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), bool(torch.empty(9).isnan().all())

    with _reproducible(torch.device("cuda")):
        assert state() == (True, False)
    assert state() == (False, False)
    torch.use_deterministic_algorithms(True)
    try:
        with _reproducible(torch.device("cuda")):
            assert state() == (True, False)
        assert state() == (True, True)
    finally:
        torch.use_deterministic_algorithms(False)


def test_one_seed_gives_one_result_beside_another_run() -> None:
    alone = [run(seed=seed) for seed in (0, 1)]
    beside: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda s=seed: beside.update({s: run(seed=s)})) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal(alone[seed], beside[seed]) for seed in (0, 1))


def test_global_random_states_are_left_as_they_were() -> None:
    def states() -> list[Any]:
        return [
            torch.get_rng_state().tolist(),
            str(np.random.mtrand.get_state(legacy=False)),
            random.getstate(),
        ]

    before = states()
    run()
    assert states() == before


def test_first_weights_are_pytorchs_default() -> None:
    first = [initial_decoder(TrainSettings(), seed, GEOMETRY).state_dict() for seed in range(2)]
    torch.manual_seed(0)
    default = build_decoder("single-scale", GEOMETRY).state_dict()
    for name, weight in default.items():
        assert not torch.equal(first[0][name], first[1][name])
        for drawn in (first[0][name], first[1][name]):
            assert drawn.abs().max() <= 1.01 * weight.abs().max() or drawn.numel() < 1000
            assert drawn.std().item() == pytest.approx(weight.std().item(), rel=0.02) or drawn.numel() < 1000


def test_validation_counts_are_of_every_tile_and_select_the_epoch() -> None:
    reports: list[EpochReport] = []
    result = run(replace(QUICK, epochs=5), on_epoch=reports.append)
    assert result.validated.tolist() == [2, 4, 5]
    assert result.val_counts.shape == (3, 3, 3, 3) and result.test_counts.shape == (3, 5, 3, 3)
    assert (result.test_counts[..., 2].sum(axis=-1) == PX * PX).all()
    means = [mean_dice(counted) for counted in result.val_counts]
    assert result.best_epoch == result.validated[int(np.argmax(means))]
    assert [report.epoch for report in reports] == [1, 2, 3, 4, 5]
    assert [report.val_dice is not None for report in reports] == [False, True, False, True, True]
    assert reports[1].val_dice is not None
    assert reports[1].val_dice.tolist() == pooled_dice(result.val_counts[0]).tolist()
    assert set(result.seconds) == {"train", "validate", "total"}


def test_stored_weights_are_those_of_the_best_epoch() -> None:
    test = split(5, 1, 3)
    result = run(replace(QUICK, epochs=6, lr=3e-2), test=test)
    decoder = build_decoder("single-scale", GEOMETRY, width=8)
    decoder.load_state_dict(dict(result.weights))
    with torch.no_grad():
        labels = decoder(test.features.gather(test.rows[:, 0])).argmax(1).numpy()
    best = result.validated.tolist().index(result.best_epoch)
    assert np.array_equal(counts(labels, test.masks, 3), result.test_counts[best])


def test_of_equal_epochs_the_earlier_is_kept() -> None:
    result = run(replace(QUICK, lr=1e-30, epochs=6))
    assert len({float(mean_dice(counted)) for counted in result.val_counts}) == 1
    assert result.best_epoch == 2


def test_the_test_split_has_no_say_in_the_selection() -> None:
    one = run(test=split(5, 1, 3))
    other = run(test=split(4, 1, 99))
    assert one.best_epoch == other.best_epoch
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_every_tile_is_seen_once_an_epoch_in_a_new_view_and_the_last_batch_is_kept() -> None:
    train = split(10, 3, 1)
    seen: list[list[int]] = []
    asked = train.features.batches

    def noted(order: Any) -> Any:
        seen.extend(rows.tolist() for rows in order)
        return asked(order)

    train.features.batches = noted  # type: ignore[method-assign]
    run(replace(QUICK, decoder="linear", options={}, epochs=6), train=train)
    assert [len(rows) for rows in seen] == [4, 4, 2] * 6
    epochs = [[*seen[at], *seen[at + 1], *seen[at + 2]] for at in range(0, 18, 3)]
    for epoch in epochs:
        assert sorted(row // 3 for row in epoch) == list(range(10))
    assert sorted(epochs[0] + epochs[1] + epochs[2]) == list(range(30))
    assert {row // 3: row for row in epochs[0]} == {row // 3: row for row in epochs[3]}
    assert [row // 3 for row in epochs[0]] != [row // 3 for row in epochs[3]]


def test_a_padded_grid_trains_and_counts_the_tiles_pixels_only() -> None:
    result = run(geometry=replace(GEOMETRY, frame_px=PX + 8))
    assert (result.val_counts[..., 2].sum(axis=-1) == PX * PX).all()


def test_classes_absent_from_the_training_split_are_named() -> None:
    train = split(10, 3, 1)
    train.masks[train.masks == 1] = 255
    with pytest.raises(InputErrors) as caught:
        run(train=train, classes=(*CLASSES, "vessel"))
    assert "class stroma" in str(caught.value) and "class vessel" in str(caught.value)
    assert "class tumour" not in str(caught.value)


def test_masks_that_do_not_fit_are_refused_all_at_once() -> None:
    val, test = split(3, 1, 2), split(5, 1, 3)
    val.masks[0, 0, 0] = 7
    with pytest.raises(InputErrors) as caught:
        run(val=val, test=replace(test, masks=test.masks[:, :-1]))
    assert len(caught.value.faults) == 2
    assert "[7]" in str(caught.value) and "test split" in str(caught.value)


def test_a_loss_that_is_no_number_ends_the_run_and_says_where() -> None:
    with pytest.raises(Diverged, match=r"one-hot.*epoch.*seed 4"):
        run(replace(QUICK, lr=1e30), seed=4)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match="whole numbers"):
        run(seed=-1)


def test_impossible_settings_are_named_all_at_once() -> None:
    with pytest.raises(InputErrors) as caught:
        TrainSettings(epochs=0, batch=0, lr=-1, upconv="quick", precision="int8")  # type: ignore[arg-type]
    assert len(caught.value.faults) == 5


def test_the_defaults_are_the_papers_protocol() -> None:
    paper = TrainSettings()
    assert (paper.decoder, paper.epochs, paper.validate_every, paper.batch) == ("single-scale", 50, 10, 8)
    assert (paper.lr, paper.restart_epochs, paper.precision) == (1e-4, 10, "float32")
    assert [epoch for epoch in range(1, 51) if paper.validates_after(epoch)] == [10, 20, 30, 40, 50]
