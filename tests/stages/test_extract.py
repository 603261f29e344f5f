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
from corner import Corner

from stages.batching import Batches
from stages.extract import Done, extract, write_views
from stages.tiles.demo import DemoDataset
from stages.tiles.plan import (
    PlannedView,
    ViewSource,
    mask_spec,
    masks_identity,
    planned_views,
    token_rows,
)
from stages.tiles.tiling import Tile, tiles_of
from stages.tiles.views import Recipe
from store import GridSpec, GridStore, verify
from store.errors import FrostgridError, IdentityMismatch, InputError

PX = 32
DATASET = DemoDataset(6, size_px=64)
RECIPE = Recipe()


@pytest.fixture(scope="module")
def tiles() -> list[Tile]:
    return tiles_of(DATASET, DATASET.records(), px=PX, step_of=lambda r: 1.0, tiling="center")


def stores(folder: Path, views: Sequence[PlannedView]) -> tuple[GridStore, GridStore]:
    masks = GridStore.at(
        folder, "views", masks_identity(RECIPE, DATASET.classes, PX), mask_spec(PX), {}, create=True
    )
    write_views(views, ViewSource(DATASET, RECIPE), masks, threads=2)
    spec = GridSpec("tokens", (3, 1, 1), "float16", ("d", "h", "w"))
    return masks, GridStore.at(folder, "corner", dict(Corner.identity), spec, {}, create=True)


def run(
    views: Sequence[PlannedView], masks: GridStore, tokens: GridStore, encoder: Corner, **more: Any
) -> Done:
    source = more.pop("source", None) or ViewSource(DATASET, RECIPE)
    batches = Batches(encoder, 3, more.pop("frees_cores", False))
    return extract(views, source, masks.reader(), batches, tokens, threads=2, **more)


@pytest.mark.parametrize("frees_cores", [False, True])
def test_every_grid_is_of_its_own_view_whatever_the_batches(
    tiles: list[Tile], tmp_path: Path, frees_cores: bool
) -> None:
    views = planned_views(tiles[:4], tiles[4:], 5)
    masks, tokens = stores(tmp_path, views)
    seen: list[tuple[int, int]] = []
    encoder = Corner()
    done = run(
        views, masks, tokens, encoder, frees_cores=frees_cores, on_progress=lambda *at: seen.append(at)
    )
    assert done == Done(22, 0)
    assert seen[0] == (0, 22)
    assert seen[-1] == (22, 22)
    assert max(encoder.batches) == 3
    assert len(encoder.threads) == 1
    source, reader = ViewSource(DATASET, RECIPE), tokens.reader()
    for view in views:
        np.testing.assert_array_equal(reader.read(view.key)[:, 0, 0], source.pixels(view)[0, 0])
    assert not verify(tokens)
    assert run(views, masks, tokens, Corner()) == Done(0, 22)


@pytest.mark.parametrize("frees_cores", [False, True])
def test_views_are_drawn_beside_an_encoder_only_where_it_leaves_the_cores_free(
    tiles: list[Tile], tmp_path: Path, frees_cores: bool
) -> None:
    views = planned_views(tiles[:4], tiles[4:], 5)
    masks, tokens = stores(tmp_path, views)
    encoding, begun, meetings = threading.Event(), threading.Event(), []

    class Slow(Corner):
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            encoding.set()
            meetings.append(begun.wait(1.0 if frees_cores and not any(meetings) else 0.05))
            encoding.clear()
            return super().encode(pixels)

    class Watched(ViewSource):
        def pixels(self, view: PlannedView) -> Any:
            time.sleep(0.005)
            if encoding.is_set():
                begun.set()
            return super().pixels(view)

    run(views, masks, tokens, Slow(), source=Watched(DATASET, RECIPE), frees_cores=frees_cores)
    assert any(meetings) is frees_cores


def test_fewer_views_are_a_prefix_of_more(tiles: list[Tile]) -> None:
    few, many = (planned_views(tiles[:4], tiles[4:], count) for count in (3, 7))
    assert many[: len(few)] == few
    assert [view.view for view in few[:6]] == [0] * 6


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_tokens_that_float16_cannot_hold_are_refused_naming_the_view(
    tiles: list[Tile], tmp_path: Path, value: float
) -> None:
    views = planned_views(tiles, [], 4)
    masks, tokens = stores(tmp_path, views)
    with pytest.raises(FrostgridError, match="demo_"):
        run(views, masks, tokens, Corner(bad_batch=5, value=value))
    done = tokens.status().views_done
    assert 0 < done < 24  # the shards before the bad one are kept
    assert run(views, masks, tokens, Corner()) == Done(24 - done, done)


def test_an_image_that_changed_after_the_views_were_drawn_is_refused(
    tiles: list[Tile], tmp_path: Path
) -> None:
    class Changed(ViewSource):
        def pixels(self, planned: PlannedView) -> np.ndarray:
            return super().pixels(planned) ^ np.uint8(planned.tile is tiles[2])

    views = planned_views(tiles, [], 1)
    masks, tokens = stores(tmp_path, views)
    with pytest.raises(IdentityMismatch, match=f"tile {tiles[2].name}, view 0"):
        run(views, masks, tokens, Corner(), source=Changed(DATASET, RECIPE))
    assert tokens.status().views_done == 0


def test_a_shard_left_unfinished_with_a_tile_that_is_gone_does_not_block_the_others(
    tiles: list[Tile], tmp_path: Path
) -> None:
    views = planned_views(tiles, [], 4)
    masks, tokens = stores(tmp_path, views)
    tokens.plan(token_rows(views, masks.reader()))  # planned, never written
    fewer = planned_views(tiles[:-1], [], 4)
    assert run(fewer, masks, tokens, Corner()) == Done(20, 0)
    assert not tokens.reader().missing([view.key for view in fewer])


def test_two_extractions_at_once_share_the_work(tiles: list[Tile], tmp_path: Path) -> None:
    views = planned_views(tiles, [], 20)
    masks, tokens = stores(tmp_path, views)
    encoders = [Corner(), Corner()]
    results: list[Done] = []
    workers = [
        threading.Thread(
            target=lambda e=encoder: results.append(run(views, masks, GridStore.open(tokens.path), e))
        )
        for encoder in encoders
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 2
    assert sum(done.computed for done in results) == len(views)
    assert not verify(tokens)


def test_sources_are_read_once_while_they_fit_in_memory(tiles: list[Tile]) -> None:
    class Counting(DemoDataset):
        reads = 0

        def read_image(self, record: Any) -> Any:
            type(self).reads += 1
            return super().read_image(record)

    views = planned_views(tiles[:3], [], 4)
    roomy = ViewSource(Counting(6, size_px=64), RECIPE)
    for view in views:
        roomy.pixels(view)
    assert Counting.reads == 3
    Counting.reads = 0
    tight = ViewSource(Counting(6, size_px=64), RECIPE, memory=1)
    for view in views:
        tight.pixels(view)
    assert Counting.reads == len(views)


def test_another_recipe_is_another_store(tiles: list[Tile], tmp_path: Path) -> None:
    stores(tmp_path, planned_views(tiles[:1], [], 2))
    with pytest.raises(InputError, match="hue"):
        GridStore.at(
            tmp_path,
            "views",
            masks_identity(replace(RECIPE, hue=0.1), DATASET.classes, PX),
            mask_spec(PX),
            {},
            create=False,
        )
