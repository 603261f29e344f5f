"""What a study needs, said before anything runs."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import Any

import torch

from pipeline.choosing import UnclearCache
from pipeline.engine import jobs
from pipeline.job import Job
from pipeline.staging import found_elsewhere
from pipeline.workspace import Workspace
from stages.cost import conv_rate, decoder_step_flop, gemm_rate
from stages.encoders import usable_device
from stages.tiles.dataset import SPLITS
from store import ViewKey
from store.errors import NoCache


def plan(work: Workspace, seeds: int | None) -> dict[str, Any]:
    """Return what a study needs: tiles, views, bytes and arithmetic of each encoder, and an estimate of the time.

    FLOP count a multiplication and an addition as two, and the decoder's are those of the form that is computed; times
    are FLOP over the rate of matrix products, for the decoder of convolutions, measured on this machine now: estimates,
    made before anything runs.
    """
    device = usable_device(None)
    rate = gemm_rate(device)
    dtype: torch.dtype = getattr(torch, work.study.train.precision)
    decoder_rate = conv_rate(device, dtype=dtype)
    count = seeds or work.study.train.seeds
    train = work.study.train
    tiles = {split: len(work.tiles[split]) for split in SPLITS}
    rows = []
    for job in jobs(work, (), seeds):
        encoder = work.backbones.flop(job.reference) * len(work.views)
        bytes_a_view = work.tokens_spec(job.about.grid).stored_nbytes
        step = decoder_step_flop(
            job.settings.decoder, job.geometry, job.settings.options, job.settings.upconv
        )
        decoder = step * len(job.tiles["train"]) * train.epochs * count
        rows.append(
            {
                "encoder": job.encoder,
                "grid": list(asdict(job.about.grid).values()),
                "bytes_a_view": bytes_a_view,
                "bytes": bytes_a_view * len(work.views),
                "views_cached": len(work.views) - len(_missing(job)),
                "encoder_flop": encoder,
                "encoder_seconds": encoder / rate,
                "decoder_flop": decoder,
                "decoder_seconds": decoder / decoder_rate,
            }
        )
    folder = next(path for path in (work.cache.absolute(), *work.cache.absolute().parents) if path.is_dir())
    return {
        "study": work.study.name,
        "tile_px": work.study.data.tile_px,
        "tiles": tiles,
        "views": len(work.views),
        "seeds": count,
        "steps": -(-len(work.training_tiles()) // train.batch) * train.epochs,
        "cache": str(work.cache),
        "place": None if work.origin is None else work.origin.url,
        "free": shutil.disk_usage(folder).free,
        "bytes": sum(row["bytes"] for row in rows),
        "device": device.type,
        "gflop_per_second": rate / 1e9,
        "decoder_gflop_per_second": decoder_rate / 1e9,
        "encoders": rows,
    }


def _missing(job: Job) -> list[ViewKey]:
    keys = [view.key for view in job.work.views]
    try:
        missing = job.tokens.reader().missing(keys)
    except (NoCache, UnclearCache):  # there is none yet, or extraction will tell which is meant
        missing = keys
    if not missing:
        return []
    there = found_elsewhere(job.work, job.reference, job.weights)
    return [key for key in missing if key not in there]
