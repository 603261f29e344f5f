from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from training_problem import GEOMETRY, QUICK, run, split

from stages.metrics import counts
from stages.training.predict import predict


def test_a_stored_decoder_predicts_what_was_counted() -> None:
    test = split(5, 1, 3)
    result = run(replace(QUICK, epochs=6, lr=3e-2), test=test)
    tokens = test.features.gather(test.rows[:, 0])
    labels = predict(replace(QUICK, epochs=6, lr=3e-2), GEOMETRY, result.weights, tokens)
    np.testing.assert_array_equal(counts(labels, test.masks, 3), result.best_counts("test"))


def test_prediction_leaves_the_random_state_alone() -> None:
    result, tokens = run(), torch.randn(1, 3, 8, 8)
    before = torch.get_rng_state()
    predict(QUICK, GEOMETRY, result.weights, tokens)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_of_another_decoder_are_refused() -> None:
    result = run()
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        predict(replace(QUICK, options={"width": 16}), GEOMETRY, result.weights, torch.randn(1, 3, 8, 8))
