"""Runs the two stages of a study in this process; what is already there is kept and said."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.console import Talk, Update, bytes_text
from pipeline.study import Study
from pipeline.workspace import SPLITS, Workspace
from stages.cost import decoder_step_flop, gemm_rate
from stages.decoders import Geometry
from stages.encoders import (
    AskedDtype,
    Description,
    canonical_name,
    encoder_flop,
    load_encoder,
)
from stages.extract import extract, write_views
from stages.tiles.plan import PlannedView
from stages.training.data import Features, ResidentFeatures, SplitData, StreamedFeatures
from stages.training.memory import choose_residency, keep_large_blocks
from stages.training.predict import predict
from stages.training.record import StoredRun, environment, load_run, write_run
from stages.training.run import EpochReport, train_run
from stages.training.settings import TrainSettings
from store import GridReader, GridStore, ViewKey
from store.errors import InputError, MissingViews
from store.identity import fingerprint

CPU_BATCH, GPU_BATCH = 4, 32
NAMED_TILES = 5  # in one message
RUN_REVISION = 1  # raise it with any change of stage two that changes results


def workspace(study: Study, cache: Path | None, runs: Path, threads: int) -> Workspace:
    """Return the study at work. Raises :class:`InputError` for a cache that is a URL."""
    root = str(cache or study.cache.root)
    if "://" in root:
        raise InputError(
            "Caches are read and written on a mounted file system only",
            where=root,
            remedy="Give a folder, or mount the bucket.",
        )
    return Workspace(study, Path(root), runs, threads)


def usable_device(device: str | None) -> torch.device:
    """Return the device asked for, or a GPU where there is one, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def chosen_encoders(study: Study, asked: Sequence[str]) -> list[str]:
    """Return the canonical names of the encoders asked for, or of all of the study; doubles once."""
    return list(dict.fromkeys(canonical_name(name) for name in (asked or study.encoders.names)))


def extract_all(
    work: Workspace,
    asked: Sequence[str],
    talk: Talk,
    *,
    weights: Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    batch: int | None = None,
) -> None:
    """Stage one for each encoder: the views store first, then the grids that the encoder's cache lacks.

    Raises :class:`InputError` for ``weights`` with more than one encoder, and whatever is wrong with data or weights.
    """
    names = chosen_encoders(work.study, asked)
    if weights is not None and len(names) > 1:
        raise InputError("--weights belongs to one encoder", remedy="Name it with --encoder.")
    target = usable_device(device)
    masks = work.masks_store(create=True)
    with talk.bar("Drawing views", "views") as update:
        done = write_views(work.views, work.source, masks, threads=work.threads, on_progress=update)
    talk.say(f"views: {done.computed} drawn, {done.kept} kept ({masks.path})")
    reader = masks.reader()
    for name in names:
        encoder = load_encoder(
            name,
            tile_px=work.study.data.tile_px,
            weights=weights or work.weights_of(name),
            fit=work.study.encoders.fit,
            device=target,
            dtype=_asked(dtype),
        )
        store = work.tokens_store(encoder, create=True)
        size = bytes_text(2 * encoder.grid.d * encoder.grid.h * encoder.grid.w * len(work.views))
        with talk.bar(f"Extracting {name}", "views", f"{size} before compression") as update:
            done = extract(
                work.views,
                work.source,
                reader,
                encoder,
                store,
                batch=batch or (GPU_BATCH if target.type == "cuda" else CPU_BATCH),
                threads=work.threads,
                on_progress=update,
            )
        stored = bytes_text(store.status().bytes)
        talk.say(f"{name}: {done.computed} views encoded, {done.kept} kept, {stored} ({store.path})")


def train_all(
    work: Workspace,
    asked: Sequence[str],
    talk: Talk,
    *,
    weights: Path | None = None,
    seeds: int | None = None,
    device: str | None = None,
) -> None:
    """Stage two for each encoder: train the seeds that have no finished run of the study as it is now."""
    target = usable_device(device)
    if target.type == "cpu":
        keep_large_blocks()
    for job in jobs(work, asked, seeds, weights=weights):
        pending = [seed for seed in job.seeds if job.finished(seed) is None]
        kept = len(job.seeds) - len(pending)
        if pending:
            data = job.load(target)
            for seed in pending:
                with talk.bar(f"Training on {job.encoder}, seed {seed}", "epochs") as update:

                    def report(epoch: EpochReport, update: Update = update) -> None:
                        update(epoch.epoch, epoch.epochs)

                    job.train(seed, data, target, report)
        talk.say(f"{job.encoder}: {len(pending)} seed(s) trained, {kept} kept ({job.folder})")


def jobs(
    work: Workspace, asked: Sequence[str], seeds: int | None, *, weights: Path | None = None
) -> Iterator[Job]:
    """Yield one job an encoder, seeds 0 … ``seeds`` − 1 (default: the study's number)."""
    for name in chosen_encoders(work.study, asked):
        yield Job(work, name, tuple(range(seeds or work.study.train.seeds)), weights or work.weights_of(name))


@dataclass
class Job:
    """All seeds of one decoder on one encoder's cache.

    ``weights`` only tells apart caches of the same encoder with other weights; the backbone is never loaded.
    """

    work: Workspace
    encoder: str
    seeds: tuple[int, ...]
    weights: Path | None

    @property
    def slug(self) -> str:
        """The encoder's name as files have it."""
        return self.encoder.replace("@", "-block")

    @property
    def folder(self) -> Path:
        """The folder of the job's runs."""
        return self.work.results / self.slug / self.settings.decoder

    @cached_property
    def settings(self) -> TrainSettings:
        """The study's training protocol."""
        train = self.work.study.train
        options = {"width": train.width} if train.decoder == "single-scale" else {}
        return TrainSettings(
            decoder=train.decoder,
            options=options,
            epochs=train.epochs,
            validate_every=train.validate_every,
            batch=train.batch,
            lr=train.lr,
            restart_epochs=train.restart_epochs,
            upconv=train.upconv,
        )

    @cached_property
    def about(self) -> Description:
        """The encoder, without its weights."""
        return self.work.describe(self.encoder)

    @cached_property
    def geometry(self) -> Geometry:
        """What the decoder has to connect."""
        px = self.work.study.data.tile_px
        frame = self.about.run_px if self.work.study.encoders.fit == "pad" else px
        grid = self.about.grid
        return Geometry(grid.d, (grid.h, grid.w), px, frame, len(self.work.dataset.classes))

    @cached_property
    def tokens(self) -> GridStore:
        """The encoder's feature cache; see :meth:`Workspace.find_tokens`."""
        return self.work.find_tokens(self.encoder, self.weights)

    @cached_property
    def masks(self) -> GridStore:
        """The views store."""
        return self.work.masks_store(create=False)

    @property
    def cached(self) -> bool:
        """Whether there is a feature cache for the job at all."""
        try:
            return bool(self.tokens.key and self.masks.key)
        except InputError:
            return False

    def identity(self, seed: int) -> dict[str, Any]:
        """Return everything that decides the result of one run, as JSON-able values."""
        tiles = {split: [[tile.key, tile.mask_key] for tile in self.work.tiles[split]] for split in SPLITS}
        return {
            "revision": RUN_REVISION,
            "tokens": self.tokens.key,
            "masks": self.masks.key,
            "tiles": fingerprint(tiles),
            "views": self.work.study.views.per_tile,
            "classes": list(self.work.dataset.classes),
            "settings": {**asdict(self.settings), "options": dict(self.settings.options)},
            "geometry": asdict(self.geometry),
            "seed": seed,
        }

    def run_folder(self, seed: int) -> Path:
        """Return where the run of ``seed`` belongs; other inputs have another folder, and nothing is overwritten."""
        return self.folder / f"seed-{seed:03d}-{fingerprint(self.identity(seed))[:8]}"

    def finished(self, seed: int) -> StoredRun | None:
        """Return the finished run of ``seed`` of the study as it is now, if there is one.

        Raises :class:`store.errors.VerificationError` naming the file when it is damaged.
        """
        folder = self.run_folder(seed)
        return load_run(folder) if folder.is_dir() else None

    def load(self, device: torch.device) -> dict[str, SplitData]:
        """Read masks and token grids of all splits once, for all seeds.

        Grids stay in GPU or host memory where they fit, else they are streamed. Raises
        :class:`store.errors.MissingViews` when the cache lacks views of the study.
        """
        views = {
            split: [
                [
                    PlannedView(tile, view)
                    for view in range(self.work.study.views.per_tile if split == "train" else 1)
                ]
                for tile in self.work.tiles[split]
            ]
            for split in SPLITS
        }
        planned = [view for split in SPLITS for row in views[split] for view in row]
        number = {(view.tile.key, view.tile.mask_key, view.view): i for i, view in enumerate(planned)}
        mask_keys = [view.mask_key for view in planned]
        masks = self._complete(self.masks, planned, mask_keys).read_many(mask_keys)
        features = self._features(planned, device)
        data = {}
        for split in SPLITS:
            rows = np.array(
                [[number[v.tile.key, v.tile.mask_key, v.view] for v in row] for row in views[split]],
                dtype=np.intp,
            )
            names = tuple(tile.name for tile in self.work.tiles[split])
            data[split] = SplitData(features, rows, masks, rows, names)
        return data

    def _features(self, planned: Sequence[PlannedView], device: torch.device) -> Features:
        keys = [view.key for view in planned]
        reader = self._complete(self.tokens, planned, keys)
        grid = self.about.grid
        shape = (grid.d, grid.h, grid.w)
        residency = choose_residency(self.about.bytes_a_view * len(keys), device)
        if residency == "stream":
            return StreamedFeatures(reader, keys, shape, device)
        return ResidentFeatures.read(reader, keys, shape, device, on_device=residency == "device")

    def _complete(
        self, store: GridStore, planned: Sequence[PlannedView], keys: Sequence[ViewKey]
    ) -> GridReader:
        """Return the store's reader if it holds all ``keys``, those of ``planned``; else say which tiles it lacks."""
        reader = store.reader()
        missing = set(reader.missing(keys))
        if not missing:
            return reader
        lacking = dict.fromkeys(v.tile.name for v, key in zip(planned, keys, strict=True) if key in missing)
        stored = {reader.row(key).name for key in reader.views()}
        changed = [
            name for name in lacking if name in stored and ViewKey(_key_of(name, planned, keys), 0) in missing
        ]
        what = f"{store.path.name} lacks {len(missing)} of the {len(keys)} views of this study"
        named = ", ".join(list(lacking)[:NAMED_TILES]) + (", …" if len(lacking) > NAMED_TILES else "")
        if changed:
            what += f"; these tiles changed since they were cached: {', '.join(changed[:NAMED_TILES])}"
        raise MissingViews(
            f"{what} (tiles {named})",
            where=store.path,
            remedy="Restore the images or masks that changed, or extract what is missing: "
            f"frostgrid extract STUDY --encoder {self.encoder}.",
        )

    def train(self, seed: int, data: dict[str, SplitData], device: torch.device, on_epoch: Any) -> None:
        """Train one seed and write its run folder."""
        result = train_run(
            self.settings,
            seed,
            data["train"],
            data["val"],
            data["test"],
            encoder=self.encoder,
            classes=self.work.dataset.classes,
            geometry=self.geometry,
            device=device,
            on_epoch=on_epoch,
        )
        write_run(
            self.run_folder(seed),
            result,
            identity={**self.identity(seed), "study": self.work.study.resolved(), "encoder": self.encoder},
            environment=environment(device),
        )

    def predict(self, run: StoredRun, views: Sequence[PlannedView]) -> NDArray[np.uint8]:
        """Return the predicted classes (N, px, px) uint8 of cached views."""
        tokens = self.tokens.reader().read_many([view.key for view in views])
        return predict(self.settings, self.geometry, run.result.weights, torch.from_numpy(tokens))


def _key_of(name: str, planned: Sequence[PlannedView], keys: Sequence[ViewKey]) -> str:
    return next(key.tile for view, key in zip(planned, keys, strict=True) if view.tile.name == name)


def plan(work: Workspace, seeds: int | None) -> dict[str, Any]:
    """Return what a study needs: tiles, views, bytes and arithmetic of each encoder, and an estimate of the time.

    FLOP count a multiplication and an addition as two; times are FLOP over the matrix-product rate measured on this
    machine now, so they are lower bounds.
    """
    device = usable_device(None)
    rate = gemm_rate(device)
    count = seeds or work.study.train.seeds
    train = work.study.train
    tiles = {split: len(work.tiles[split]) for split in SPLITS}
    rows = []
    for job in jobs(work, (), seeds):
        encoder = encoder_flop(job.encoder, tile_px=work.study.data.tile_px) * len(work.views)
        step = decoder_step_flop(job.settings.decoder, job.geometry, job.settings.options)
        decoder = step * tiles["train"] * train.epochs * count
        rows.append(
            {
                "encoder": job.encoder,
                "grid": list(asdict(job.about.grid).values()),
                "bytes_a_view": job.about.bytes_a_view,
                "bytes": job.about.bytes_a_view * len(work.views),
                "views_cached": len(work.views) - len(_missing(job)),
                "encoder_flop": encoder,
                "encoder_seconds": encoder / rate,
                "decoder_flop": decoder,
                "decoder_seconds": decoder / rate,
            }
        )
    folder = next(path for path in (work.cache.absolute(), *work.cache.absolute().parents) if path.is_dir())
    return {
        "study": work.study.name,
        "tile_px": work.study.data.tile_px,
        "tiles": tiles,
        "views": len(work.views),
        "seeds": count,
        "steps": -(-tiles["train"] // train.batch) * train.epochs,
        "cache": str(work.cache),
        "free": shutil.disk_usage(folder).free,
        "bytes": sum(row["bytes"] for row in rows),
        "device": device.type,
        "gflop_per_second": rate / 1e9,
        "encoders": rows,
    }


def _missing(job: Job) -> list[ViewKey]:
    keys = [view.key for view in job.work.views]
    try:
        return job.tokens.reader().missing(keys)
    except InputError:  # there is no such cache yet
        return keys


def _asked(dtype: str | None) -> AskedDtype:
    for known in ("float32", "float16", "bfloat16"):
        if dtype == known:
            return known
    return "auto"
