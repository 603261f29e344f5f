"""What the views store keeps of a view puts it back in its place, without the study and without the images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
from corner import Corner

from stages.batching import Batches
from stages.extract import extract, write_views
from stages.tiles.demo import DemoDataset
from stages.tiles.plan import ViewSource, mask_spec, masks_identity, planned_views
from stages.tiles.tiling import tiles_of
from stages.tiles.views import Recipe, view_sha256
from store import GridSpec, GridStore
from store.exchange import export_pooled

DATASET = DemoDataset(3, size_px=64)
RECIPE = Recipe()


def test_pooled_features_lie_where_their_pixels_are(tmp_path: Path) -> None:
    tiles = tiles_of(DATASET, DATASET.records(), px=16, step_of=lambda r: 1.0, tiling="grid")
    views = planned_views(tiles, [], 2)
    source = ViewSource(DATASET, RECIPE)
    masks = GridStore.at(
        tmp_path, "views", masks_identity(RECIPE, DATASET.classes, 16), mask_spec(16), {}, create=True
    )
    write_views(views, source, masks, threads=2)
    for view in views:
        meta = masks.reader().meta(view.mask_key)
        tile = view.tile
        place = {"image": tile.record.id, "centre": list(tile.centre), "step": 1.0, "px": 16}
        draw = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(source.draw(view)).items()}
        assert meta == {"pixels": view_sha256(source.pixels(view)), "draw": draw, "tile": place}
    spec = GridSpec("tokens", (3, 1, 1), "float16", ("d", "h", "w"))
    tokens = GridStore.at(tmp_path, "corner", Corner.identity, spec, {}, create=True)
    extract(views, source, masks.reader(), Batches(Corner(), 8), tokens, threads=2)
    export_pooled(tokens, tmp_path / "bags", masks=masks)
    assert len(list((tmp_path / "bags").iterdir())) == 3
    for record in DATASET.records():
        image = DATASET.read_image(record)
        with h5py.File(tmp_path / "bags" / f"{record.id}.h5") as file:
            x, y = file["coords"][:].T
            assert len(x) == 16 and len({*zip(x.tolist(), y.tolist(), strict=True)}) == 16
            assert np.array_equal(file["features"][:], image[y, x].astype(np.float32))
