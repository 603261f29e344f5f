"""Token grids from memory and from a store: the same batches, read ahead, with errors where they belong."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from training_problem import CPU, SPEC, blocks, equal, resident, run, split

from stages.training.data import Features, ResidentFeatures, SplitData, StreamedFeatures
from store.errors import InputError, MissingViews
from store.grids import GridStore, ViewKey, ViewRow


class ArrayReader:
    """A reader over an array that notes what was asked for, and fails at one key."""

    def __init__(self, grids: NDArray[np.float16], failing: int = -1) -> None:
        self.grids, self.failing, self.asked = grids, failing, list[int]()

    def read_stored_many(
        self, keys: Sequence[Any], out: NDArray[Any] | None = None, *, threads: int = 2
    ) -> NDArray[Any]:
        if self.failing in keys:
            raise MissingViews("the view was never written", where=str(self.failing))
        self.asked += keys
        assert out is not None
        out[:] = self.grids[list(keys)]
        return out


def streamed(tokens: NDArray[np.float16]) -> Features:
    return StreamedFeatures(ArrayReader(tokens), range(len(tokens)), SPEC, CPU)


def background_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "frostgrid-features"]


def stored(root: Path, tokens: NDArray[np.float16]) -> tuple[GridStore, list[ViewKey]]:
    store = GridStore.at(root, "stub", {"encoder": "stub"}, SPEC, {}, create=True)
    rows = [ViewRow(f"{number:064x}", 0, f"tile_{number}", "") for number in range(len(tokens))]
    for task in store.plan(rows, shard_views=8):
        with store.lease(task) as mine:
            assert mine
            store.write(task, [(tokens[int(row.tile, 16)], None) for row in task.rows])
    return store, [row.key for row in rows]


def test_streamed_and_resident_grids_train_to_the_same_bits() -> None:
    in_memory = run(train=split(10, 3, 1, resident), val=split(3, 1, 2, resident))
    assert equal(in_memory, run(train=split(10, 3, 1, streamed), val=split(3, 1, 2, streamed)))


@pytest.mark.parametrize("held", [resident, streamed])
def test_batches_are_the_rows_asked_for_in_float32(held: Any) -> None:
    tokens, _ = blocks(10, 3, 1)
    features = held(tokens)
    order = [np.array(rows, dtype=np.intp) for rows in ([3, 1, 2], [29, 29, 0], [7])]
    batches = list(features.batches(order))
    for rows, batch in zip(order, batches, strict=True):
        assert batch.dtype == torch.float32
        assert np.array_equal(batch.numpy(), tokens[rows].astype(np.float32))
        assert torch.equal(batch, features.gather(rows))
    assert list(features.batches([])) == []


def test_a_real_store_gives_its_grids_either_way(tmp_path: Path) -> None:
    tokens, _ = blocks(10, 3, 1)
    store, keys = stored(tmp_path, tokens)
    held = ResidentFeatures.read(store.reader(), keys, SPEC, CPU)
    flowing = StreamedFeatures(store.reader(), keys, SPEC, CPU)
    order = [np.array([4, 20, 9], dtype=np.intp), np.array([0, 29], dtype=np.intp)]
    for rows, one, other in zip(order, held.batches(order), flowing.batches(order), strict=True):
        assert np.array_equal(one.numpy(), tokens[rows].astype(np.float32))
        assert torch.equal(one, other)


def test_a_view_that_is_missing_from_the_store_is_named(tmp_path: Path) -> None:
    tokens, _ = blocks(4, 1, 1)
    store, keys = stored(tmp_path, tokens)
    keys[2] = ViewKey(keys[2].tile, 5)
    order = [np.array([0, 1], dtype=np.intp), np.array([2, 3], dtype=np.intp)]
    flow = StreamedFeatures(store.reader(), keys, SPEC, CPU).batches(order)
    assert next(flow).shape == (2, *SPEC.shape)
    with pytest.raises(MissingViews, match="5"):
        next(flow)
    assert not background_threads()


def test_an_error_of_the_reader_ends_the_run_that_needs_the_grid() -> None:
    tokens, _ = blocks(10, 3, 1)
    failing = StreamedFeatures(ArrayReader(tokens, failing=17), range(30), SPEC, CPU)
    with pytest.raises(MissingViews, match="17"):
        run(train=replace(split(10, 3, 1), features=failing))
    assert not background_threads()


def test_reading_ahead_is_bounded_and_stops_when_nobody_reads_on() -> None:
    tokens, _ = blocks(10, 3, 1)
    reader = ArrayReader(tokens)
    flow = StreamedFeatures(reader, range(30), SPEC, CPU, ahead=2).batches(
        [np.array([row], dtype=np.intp) for row in range(30)]
    )
    next(flow)
    deadline = time.monotonic() + 60
    while len(reader.asked) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert (
        len(reader.asked) == 4
    )  # the one in use gave its space back: one read, three ahead of the next step
    flow.close()
    assert not background_threads()
    assert len(reader.asked) <= 5


def test_a_batch_stays_what_it_was_while_others_are_read() -> None:
    tokens, _ = blocks(10, 3, 1)
    order = [np.array([row, row + 1], dtype=np.intp) for row in range(0, 30, 2)]
    batches = list(streamed(tokens).batches(order))
    assert all(
        np.array_equal(batch, tokens[rows].astype(np.float32))
        for rows, batch in zip(order, batches, strict=True)
    )


def test_grids_of_another_type_are_refused() -> None:
    with pytest.raises(InputError, match="float16"):
        ResidentFeatures(torch.zeros(2, 3, 8, 8), SPEC, CPU)


def test_a_split_whose_parts_do_not_fit_is_refused() -> None:
    good = split(4, 2, 1)
    with pytest.raises(InputError, match="at least one tile"):
        replace(good, names=good.names[:-1])
    with pytest.raises(InputError, match="at least one tile"):
        replace(good, mask_rows=good.mask_rows[:, :1])
    with pytest.raises(InputError, match="at least one tile"):
        SplitData(good.features, good.rows[:0], good.masks, good.mask_rows[:0], ())
    with pytest.raises(InputError, match="uint8"):
        replace(good, masks=good.masks.astype(np.int64))  # type: ignore[arg-type]
