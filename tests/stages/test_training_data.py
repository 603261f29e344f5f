"""Token grids from memory and from a store: the same batches, read ahead, with errors where they belong."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
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


def test_closing_does_not_wait_for_what_the_reader_takes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, emptied = threading.Event(), threading.Event()

    class Raced(SimpleQueue):  # type: ignore[type-arg]
        """A queue from which the reader takes the last item between a look and what follows from it."""

        def empty(self) -> bool:
            answer = super().empty()
            reading.set()
            emptied.wait(5)
            return answer

        def get_nowait(self) -> Any:
            reading.set()
            emptied.wait(5)
            return super().get_nowait()

    class Slow(ArrayReader):
        def read_stored_many(self, *arguments: Any, **more: Any) -> NDArray[Any]:
            if self.asked:
                reading.wait(20)
                if len(self.asked) == 3:
                    emptied.set()
            return super().read_stored_many(*arguments, **more)

    monkeypatch.setattr("stages.training.data.SimpleQueue", Raced)
    tokens, _ = blocks(10, 3, 1)
    flow = StreamedFeatures(Slow(tokens), range(30), SPEC, CPU, ahead=2).batches(
        [np.array([row], dtype=np.intp) for row in range(30)]
    )
    next(flow)
    closing = threading.Thread(target=flow.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive() and not background_threads()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Copies to a GPU stay in host memory; returns what was asked of it, in order."""
    asked: list[str] = []
    to, empty = torch.Tensor.to, torch.empty

    def pinned(tensor: torch.Tensor) -> torch.Tensor:
        asked.append(f"pinned {tuple(tensor.shape)}")
        return tensor

    def moved(tensor: torch.Tensor, *where: Any, **how: Any) -> torch.Tensor:
        if where and isinstance(where[0], torch.device) and where[0].type == "cuda":
            asked.append("queued" if how == {"non_blocking": True} else "waited for")
            return tensor.clone()
        return to(tensor, *where, **how)

    def made(*shape: Any, pin_memory: bool = False, **how: Any) -> torch.Tensor:
        asked.append(f"space {'pinned' if pin_memory else 'plain'}")
        return empty(*shape, **how)

    class Event:
        def __init__(self, blocking: bool) -> None:
            assert blocking

        def record(self, stream: object) -> None:
            asked.append("noted")

        def synchronize(self) -> None:
            asked.append("awaited")

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "to", moved)
    monkeypatch.setattr(torch, "empty", made)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the stream")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return asked


GPU = torch.device("cuda", 0)


def test_a_gpu_takes_grids_and_masks_from_page_locked_memory_without_being_waited_for(
    pretended: list[str],
) -> None:
    tokens, masks = blocks(4, 1, 1)
    features = ResidentFeatures(torch.from_numpy(tokens), SPEC, GPU)
    rows = np.arange(4, dtype=np.intp)[:, None]
    data = SplitData(features, rows, masks, rows, ("a", "b", "c", "d"))
    chosen = [(np.array([2, 1]), np.array([0, 0])), (np.array([3]), np.array([0]))]
    found = list(data.examples(chosen, GPU))
    assert [truth.tolist() for _, truth in found] == [masks[[2, 1]].tolist(), masks[[3]].tolist()]
    assert [grids.tolist() for grids, _ in found] == [tokens[[2, 1]].tolist(), tokens[[3]].tolist()]
    assert pretended[:5] == [
        "space pinned",
        f"pinned {(2, *SPEC.shape)}",
        "queued",
        "pinned (2, 32, 32)",
        "queued",
    ]
    assert "waited for" not in pretended


def test_the_space_of_streamed_grids_is_used_again_only_when_a_gpu_has_taken_them(
    pretended: list[str],
) -> None:
    tokens, _ = blocks(10, 3, 1)
    order = [np.array([row], dtype=np.intp) for row in range(30)]
    features = StreamedFeatures(ArrayReader(tokens), range(30), SPEC, GPU, ahead=2)
    for row, batch in enumerate(features.batches(order)):
        assert batch[0].tolist() == tokens[row].tolist()
    assert pretended.count("space pinned") == 3
    assert (pretended.count("queued"), pretended.count("noted")) == (30, 30)
    assert pretended.count("awaited") == 30  # before the space is used again, or freed
    assert "waited for" not in pretended


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("on_device", [True, False])
def test_no_batch_is_waited_for_on_a_gpu(on_device: bool) -> None:
    tokens, masks = blocks(10, 3, 1)
    held = torch.from_numpy(tokens).to("cuda" if on_device else "cpu")
    rows = np.arange(30, dtype=np.intp)[:, None]
    data = SplitData(ResidentFeatures(held, SPEC, GPU), rows, masks, rows, tuple(map(str, range(30))))
    chosen = [(np.array([row, row + 1]), np.array([0, 0])) for row in range(0, 30, 2)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(data.examples(chosen, GPU))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (at, _), (grids, truth) in zip(chosen, found, strict=True):
        assert np.array_equal(grids.cpu().numpy(), tokens[at].astype(np.float32))
        assert np.array_equal(truth.cpu().numpy(), masks[at])


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
