"""Stage one: what reading, augmenting, hashing and writing add to the encoder's own time."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from bench.harness import Result, Setting, benchmark, compared, in_turn
from pipeline.study import read_study
from pipeline.workspace import Workspace
from stages.batching import Batches, batches_for
from stages.encoders import load_encoder
from stages.extract import extract, write_views
from stages.tiles.plan import ViewSource
from store.errors import InputError

_STUDY = """
[data]
kind = "folder"
root = "{root}"
table = "meta.csv"
scale = 1.0
tile_px = {px}
classes = {{ Stroma = [0], Benign = [1], Malignant = [2] }}
split = {{ train = {train}, val = 4, test = 4, seed = 0 }}
[views]
per_tile = {views}
[encoders]
names = ["{encoder}"]
"""


@benchmark("extraction/dinov2-s14")
def dinov2(setting: Setting) -> Result:
    """64 augmented views of 512 px to a cache, against the encoder's forward pass of the same batches."""
    shared = Path(os.environ.get("FROSTGRID_TEST_DATA", Path(__file__).parents[2] / "shared"))
    weights = shared / "weights" / "dinov2-s14" / "model.safetensors"
    name = "pixels" if setting.small else "dinov2-s14@12"
    px, train, views = (64, 4, 2) if setting.small else (512, 8, 7)
    if not (shared / "data" / "he_glas").is_dir():
        raise InputError(
            "real images and weights are needed",
            where=shared,
            remedy="Set FROSTGRID_TEST_DATA to the folder that holds them.",
        )
    with TemporaryDirectory(dir=setting.folder) as folder:
        file = Path(folder) / "bench.toml"
        file.write_text(
            _STUDY.format(root=shared / "data" / "he_glas", px=px, train=train, views=views, encoder=name)
        )
        work = Workspace(read_study(file), Path(folder) / "views", Path(folder), setting.threads, "float32")
        masks = work.masks_store(create=True)
        write_views(work.views, work.source, masks, threads=setting.threads)
        reader = masks.reader()
        encoder = load_encoder(name, tile_px=px, weights=None if setting.small else weights)
        batches = batches_for(encoder, px, torch.device("cpu"), None)
        pixels = np.stack([work.source.pixels(view) for view in work.views])
        caches = (Path(folder) / f"cache-{number}" for number in count())

        def ours() -> None:
            there = Workspace(work.study, next(caches), Path(folder), setting.threads, "float32")
            done = extract(
                work.views,
                ViewSource(work.dataset, work.recipe),
                reader,
                Batches(encoder, batches.size, batches.frees_cores),
                there.tokens_store(encoder, create=True),
                threads=setting.threads,
            )
            assert done.computed == len(work.views)

        def bare() -> None:
            for start in range(0, len(pixels), batches.size):
                batches.encode(torch.from_numpy(pixels[start : start + batches.size]).permute(0, 3, 1, 2))

        samples = in_turn(setting, ours, bare)
    return compared(
        samples,
        f"{len(work.views)} views of {px} px (GlaS), batches of {batches.size}, float32, {setting.threads} threads: "
        f"images read, views rendered and hashed, encoded by {name}, compressed and written, against encoding the "
        "same views from memory",
        "<= 1.05",
        ratio="ours/reference",
    )
