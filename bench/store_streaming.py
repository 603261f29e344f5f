"""A training loop that streams its batches from a cache."""

from __future__ import annotations

import time

import numpy as np
import torch

from bench.harness import Result, Setting, benchmark, compared, in_turn
from bench.store_reading import written_cache
from stages.training.data import StreamedFeatures
from stages.training.memory import keep_large_blocks

BATCH, STEP_S = 8, 0.02


@benchmark("store/streaming")
def streaming(setting: Setting) -> Result:
    """A training loop that streams its batches beside a step that leaves the processor idle."""
    return _streamed(
        setting,
        torch.device("meta"),
        "as one on a GPU does. The batch is handed over as it is stored; the copy to the device is not in it",
        ">= 0.9",
    )


@benchmark("store/streaming-to-cpu")
def streaming_to_cpu(setting: Setting) -> Result:
    """The same where the processor also has to make every batch float32 with the channels last."""
    return _streamed(
        setting,
        torch.device("cpu"),
        "while the processor also makes every batch float32 with the channels last, which a GPU does itself",
        "none: a step on the processor takes seconds",
    )


def _streamed(setting: Setting, device: torch.device, how: str, target: str) -> Result:
    keep_large_blocks()  # as every training run does; it cannot be undone, so this module's benchmarks run last
    with written_cache(setting) as written:
        steps = 4 if setting.small else 50
        features = StreamedFeatures(
            written.reader, written.keys, written.made.spec, device, threads=setting.threads
        )
        rng = np.random.default_rng(0)
        order = [rng.integers(0, len(written.keys), BATCH) for _ in range(steps)]

        def ours() -> None:
            for _ in features.batches(order):
                time.sleep(STEP_S)

        def reference() -> None:
            for _ in order:
                time.sleep(STEP_S)

        samples = in_turn(setting, ours, reference)
        return compared(
            samples,
            f"{steps} steps of {1000 * STEP_S:.0f} ms that leave the processor idle, {how}: with batches of {BATCH} "
            f"views from StreamedFeatures ({setting.threads} threads), against no data at all; {written.about}",
            target,
            steps_a_s=[steps / seconds for seconds in sorted(samples.ours)],
        )
