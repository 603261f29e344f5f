"""Batches that shrink when memory runs out: nothing fails, nothing is lost, nothing else changes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_rows import timm_model, tiny, views, write_row
from safetensors.torch import save_file

from stages.batching import CPU_SIZE, LARGEST, Batches, batches_for, fitting_size, is_out_of_memory
from stages.encoders import Encoder, TokenGrid, load_encoder
from stages.extract import Done, extract, write_views
from stages.tiles.demo import DemoDataset
from stages.tiles.plan import ViewSource, mask_spec, masks_identity, planned_views
from stages.tiles.tiling import tiles_of
from stages.tiles.views import Recipe
from store import GridSpec, GridStore, verify
from store.errors import InputError

PX = 32


class Small:
    """An encoder of first pixels whose memory holds ``room`` views; ``error`` is how it says so."""

    name = "small"
    parameters = 0
    grid = TokenGrid(3, 1, 1)
    identity: Mapping[str, Any] = {"encoder": "small"}
    provenance: Mapping[str, Any] = {}

    def __init__(self, room: int, error: Exception | None = None) -> None:
        self.room = room
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.asked: list[int] = []
        self.held: list[bool] = []  # whether an earlier attempt's tensor was still there, by attempt
        self._tensor: Any = lambda: None

    def encode(self, views: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(views))
        self.held.append(self._tensor() is not None)
        work = views.clone()
        self._tensor = weakref.ref(work)
        if len(views) > self.room:
            raise type(self.error)(*self.error.args)
        return work[:, :, :1, :1].float()


def pixels(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, PX, PX), dtype=torch.uint8)


@pytest.mark.parametrize("room", [1, 2, 3, 5, 7, 32])
def test_batches_are_halved_until_they_fit_and_every_view_is_encoded_once(room: int) -> None:
    encoder = Small(room)
    batches = Batches(encoder, 16)
    images = pixels(23)
    got = np.concatenate([batches.encode(images[:16]), batches.encode(images[16:])])
    np.testing.assert_array_equal(got, images[:, :, :1, :1].numpy().astype(np.float16))
    assert batches.started == 16
    assert batches.size == next(size for size in (16, 8, 4, 2, 1) if size <= room)
    assert sum(count for count in encoder.asked if count <= room) == 23
    assert [count for count in encoder.asked if count > room] == [
        size for size in (16, 8, 4, 2) if size > room
    ]


def test_what_the_failed_attempt_held_is_free_before_the_next() -> None:
    """Else the next attempt would have even less memory than the one that failed."""
    encoder = Small(2)
    gc.disable()  # freed by counting references, not by luck
    try:
        Batches(encoder, 4).encode(pixels(4))
    finally:
        gc.enable()
    assert encoder.asked == [4, 2, 2]
    assert encoder.held == [False] * 3


def test_one_view_too_many_is_explained_and_other_errors_are_left_alone() -> None:
    with pytest.raises(InputError) as caught:
        Batches(Small(0), 8).encode(pixels(3))
    assert "not even for one view at a time" in str(caught.value)
    assert "--dtype" in str(caught.value.remedy)
    encoder = Small(1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Batches(encoder, 8).encode(pixels(8))
    assert encoder.asked == [8]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_way_to_say_that_memory_ran_out_is_understood(error: Exception) -> None:
    assert is_out_of_memory(error)
    batches = Batches(Small(2, error), 4)
    assert len(batches.encode(pixels(4))) == 4
    assert batches.size == 2


def test_an_extraction_that_runs_out_of_memory_half_way_ends_with_every_grid_right(tmp_path: Path) -> None:
    class Shrinking(Small):
        """Another process takes the memory after the third batch."""

        def encode(self, views: torch.Tensor) -> torch.Tensor:
            self.room = 8 if len(self.asked) < 3 else 3
            return super().encode(views)

    dataset, recipe = DemoDataset(6, size_px=64), Recipe()
    tiles = tiles_of(dataset, dataset.records(), px=PX, step_of=lambda record: 1.0, tiling="center")
    planned = planned_views(tiles, [], 10)
    source = ViewSource(dataset, recipe)
    masks = GridStore.at(
        tmp_path, "views", masks_identity(recipe, dataset.classes, PX), mask_spec(PX), {}, create=True
    )
    write_views(planned, source, masks, threads=2)
    spec = GridSpec("tokens", (3, 1, 1), "float16", ("d", "h", "w"))
    tokens = GridStore.at(tmp_path, "small", dict(Small.identity), spec, {}, create=True)
    encoder = Shrinking(8)
    batches = Batches(encoder, 8)
    assert extract(planned, source, masks.reader(), batches, tokens, threads=2) == Done(60, 0)
    assert (batches.started, batches.size) == (8, 2)
    assert max(encoder.asked[4:]) <= 4
    reader = tokens.reader()
    for view in planned:
        np.testing.assert_array_equal(reader.read(view.key)[:, 0, 0], source.pixels(view)[0, 0])
    assert not verify(tokens)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("tiny")
    save_file(timm_model(tiny()).state_dict(), folder / "tiny.safetensors")
    return load_encoder(write_row(folder, tiny()), tile_px=PX, weights=folder / "tiny.safetensors")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_tokens_do_not_depend_on_the_batch_beyond_rounding(transformer: Encoder, size: int) -> None:
    images = views(7, PX)
    whole = Batches(transformer, 7).encode(images).astype(np.float32)
    parts = Batches(transformer, size).encode(images).astype(np.float32)
    assert parts.shape == (7, 32, 4, 4)
    np.testing.assert_allclose(parts, whole, rtol=2**-9, atol=1e-5)  # an ulp or two of float16


def test_sizes_follow_from_what_one_and_two_views_take() -> None:
    mb, gb = 10**6, 10**9
    assert fitting_size(500 * mb, 700 * mb, 8 * gb) == 16  # 1 + (6400 − 500) / 200 = 30
    assert fitting_size(500 * mb, 700 * mb, 80 * gb) == LARGEST
    assert fitting_size(5 * gb, 9 * gb, 6 * gb) == 1
    assert fitting_size(5 * gb, 5 * gb, 8 * gb) == LARGEST  # the second view cost nothing that was measured


def test_a_cpu_starts_with_its_default_or_with_what_is_asked_for() -> None:
    cpu = torch.device("cpu")
    encoder = Small(1)
    assert batches_for(encoder, PX, cpu).size == CPU_SIZE
    assert batches_for(encoder, PX, cpu, 11).size == 11
    assert encoder.asked == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_starts_with_what_was_measured(tmp_path: Path) -> None:
    save_file(timm_model(tiny()).state_dict(), tmp_path / "tiny.safetensors")
    device = torch.device("cuda")
    encoder = load_encoder(
        write_row(tmp_path, tiny()), tile_px=PX, weights=tmp_path / "tiny.safetensors", device=device
    )
    batches = batches_for(encoder, PX, device)
    assert batches.size == LARGEST
    assert len(batches.encode(views(LARGEST, PX))) == LARGEST
