"""How memory is divided: within what is allowed, whatever else is to be trained, on a GPU beside what a step takes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as checks
from hypothesis import strategies as st

from pipeline.budget import (
    GPU_SHARE,
    MASK_SHARE,
    PROCESS_BYTES,
    STREAMED_BATCHES,
    Budget,
    budget_for,
    room_for,
)
from stages.decoders import Geometry
from stages.training import memory
from stages.training.footprint import OVERHEAD, step_bytes
from stages.training.settings import TrainSettings
from store import GridSpec
from store.errors import InputError

CPU = torch.device("cpu")
GIB = 1 << 30
PAPER = Geometry(width_in=1024, grid=(32, 32), target_px=512, frame_px=512, classes=3)
TOKENS = GridSpec("tokens", (1024, 32, 32), "float16", ("d", "h", "w"))
MASKS = GridSpec("masks", (512, 512), "uint8", ("h", "w"))
LINEAR = TrainSettings(decoder="linear")


@pytest.fixture
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with more free memory than any of these budgets."""
    for place in ("pipeline.budget", "stages.training.memory"):
        monkeypatch.setattr(f"{place}.available_memory", lambda root=None: 100 * GIB)


@pytest.mark.usefixtures("plenty")
def test_four_gibibytes_train_two_tiles_at_a_time_however_many_views_there_are() -> None:
    budget = budget_for(TrainSettings(), PAPER, [CPU], 4 * GIB)
    assert budget.at_once == 2
    rooms = [room_for(TOKENS, MASKS, views, CPU, budget) for views in (100, 250, 600, 900, 1000, 1100)]
    assert [room.residency for room in rooms] == ["host", "host", *["stream"] * 4]
    assert [room.masks for room in rooms] == [True, True, *[False] * 4]


@checks(max_examples=40, deadline=None)
@given(extra=st.integers(0, 1 << 29), count=st.integers(1, 4), shared=st.booleans(), batch=st.integers(1, 8))
def test_all_processes_together_stay_within_what_is_allowed(
    extra: int, count: int, shared: bool, batch: int
) -> None:
    count, settings = count if shared else 1, replace(LINEAR, batch=batch)
    allowed = PROCESS_BYTES * (count + 1) + extra
    try:
        budget = budget_for(settings, PAPER, [CPU] * count, allowed, shared=shared)
    except InputError:
        return
    assert budget.at_once is not None and 1 <= budget.at_once <= batch and budget.kept is not None
    streamed = count * STREAMED_BATCHES * batch * TOKENS.stored_nbytes
    used = count * (PROCESS_BYTES + OVERHEAD * step_bytes(settings, PAPER, budget.at_once))
    used += PROCESS_BYTES * shared
    assert used + max(budget.kept, streamed + MASK_SHARE * budget.kept) <= allowed


@pytest.mark.usefixtures("plenty")
def test_what_a_share_does_not_hold_is_trained_without_anything_kept_in_memory() -> None:
    one_tile = int(OVERHEAD * step_bytes(LINEAR, PAPER, 1)) + 1
    least = PROCESS_BYTES + one_tile + STREAMED_BATCHES * LINEAR.batch * TOKENS.stored_nbytes
    budget = budget_for(LINEAR, PAPER, [CPU], least)
    assert budget == Budget(1, 0)
    room = room_for(TOKENS, MASKS, 1, CPU, budget)
    assert (room.residency, room.masks) == ("stream", False)
    with pytest.raises(InputError, match="on a single tile takes about"):
        budget_for(LINEAR, PAPER, [CPU], least - 2)


def test_processes_divide_the_memory_and_without_a_limit_nothing_is_divided() -> None:
    allowed = 2 * GIB
    counts = [budget_for(LINEAR, PAPER, [CPU] * n, allowed, shared=True).at_once or 0 for n in (1, 2, 3)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]
    assert budget_for(TrainSettings(), PAPER, [CPU] * 2, None, shared=True) == Budget()


@pytest.mark.usefixtures("plenty")
def test_without_a_limit_half_of_what_there_is_holds_grids_and_a_fifth_masks() -> None:
    def found(views: int, available: int | None = None) -> tuple[str, bool]:
        room = room_for(TOKENS, MASKS, views, CPU, Budget(), available=available)
        return room.residency, room.masks

    assert found(50 * GIB // TOKENS.stored_nbytes) == ("host", True)
    assert found(50 * GIB // TOKENS.stored_nbytes + 1) == ("stream", True)
    assert found(20 * GIB // MASKS.stored_nbytes + 1) == ("stream", False)
    assert found(100, available=100 * TOKENS.stored_nbytes) == ("stream", True)


def gpus(monkeypatch: pytest.MonkeyPatch, *total: int, free: int = 0) -> list[torch.device]:
    sizes = dict(enumerate(total))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda one: SimpleNamespace(total_memory=sizes[one.index])
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda one: (free, sizes[one.index]))
    return [torch.device("cuda", number) for number in sizes]


def test_the_smallest_gpu_decides_how_many_tiles_are_worked_on_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs = [int(OVERHEAD * step_bytes(TrainSettings(), PAPER, tiles)) + 1 for tiles in range(1, 9)]
    small = int(needs[2] / GPU_SHARE) + 1
    devices = gpus(monkeypatch, 80 * GIB, small)
    assert budget_for(TrainSettings(), PAPER, devices[:1], None).at_once == 8
    assert budget_for(TrainSettings(), PAPER, devices[::-1], None, shared=True).at_once == 3
    assert budget_for(TrainSettings(), PAPER, devices, None, shared=True).at_once == 3
    graphs = budget_for(TrainSettings(cuda_graphs=True), PAPER, devices, None)
    assert graphs.at_once == 1  # a recording has memory of its own, beside that of other batches
    (tiny,) = gpus(monkeypatch, GIB)
    with pytest.raises(InputError, match="on a single tile takes about"):
        budget_for(TrainSettings(), PAPER, [tiny], None)


@pytest.mark.usefixtures("plenty")
def test_grids_stay_on_a_gpu_only_beside_what_a_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    (gpu,) = gpus(monkeypatch, 16 * GIB, free=15 * GIB)
    budget = budget_for(TrainSettings(), PAPER, [gpu], None)
    needed = OVERHEAD * step_bytes(TrainSettings(), PAPER, 8)
    assert budget.at_once == 8 and budget.kept is None and needed <= budget.step <= needed + 2 * GIB
    fit = (15 * GIB - budget.step) // TOKENS.stored_nbytes
    assert fit * TOKENS.stored_nbytes < memory.DEVICE_SHARE * 15 * GIB  # that share alone would take more
    assert [room_for(TOKENS, MASKS, views, gpu, budget).residency for views in (fit, fit + 1)] == [
        "device",
        "host",
    ]
    assert room_for(TOKENS, MASKS, fit, gpu, budget).step == budget.step
    assert room_for(TOKENS, MASKS, fit, gpu, budget, shared=True).residency == "host"
    limited = budget_for(TrainSettings(), PAPER, [gpu], 2 * GIB)
    assert limited.at_once == 8  # host memory has no say in it
    assert room_for(TOKENS, MASKS, fit + 1, gpu, limited).residency == "stream"


def test_what_is_held_for_several_runs_leaves_room_for_each_of_them() -> None:
    assert Budget.of_all([Budget(8, None, 5), Budget(1, None, 9)]) == Budget(None, None, 9)
    assert Budget.of_all([Budget(8, 100), Budget(1, 0)]) == Budget(None, 0)
