"""One encoder's share of stage two: its cache, its data, and the runs of its seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.choosing import UnclearCache
from pipeline.recorded import run_folders
from pipeline.runs import RunTask, same_run
from pipeline.study import Study
from pipeline.tilesets import Selection, TileSet
from pipeline.workspace import Workspace, slug_of
from stages.cost import decoder_step_flop
from stages.decoders import Geometry, build_decoder, decoder_options, decoder_source
from stages.encoders import Description
from stages.tiles.dataset import SPLITS
from stages.tiles.plan import PlannedView
from stages.tiles.tiling import Tile
from stages.training.predict import predict
from stages.training.record import StoredRun, load_run, read_record
from stages.training.settings import TrainSettings
from store import GridStore
from store.errors import InputError, NoCache, OtherCache, VerificationError
from store.identity import canonical_json, fingerprint

LOGIT_FLOP = 100  # what resizing and the loss cost a logit, beside the decoder's arithmetic
RUN_REVISION = 4  # raise it with any change of stage two that changes results, in their last bits too


def settings_of(study: Study) -> TrainSettings:
    """Return the study's training protocol, with every option of its decoder.

    Raises :class:`InputError` for a decoder that is not known, and for options that it does not have or take.
    """
    train = study.train
    return TrainSettings(
        decoder=train.decoder,
        options=decoder_options(train.decoder, train.decoder_options),
        loss=train.loss,
        epochs=train.epochs,
        validate_every=train.validate_every,
        batch=train.batch,
        lr=train.lr,
        restart_epochs=train.restart_epochs,
        upconv=train.upconv,
        precision=train.precision,
        cuda_graphs=train.cuda_graphs,
    )


@dataclass
class Job:
    """All seeds of one decoder on one encoder's cache.

    ``encoder`` is the canonical name, ``reference`` what the user wrote. ``weights`` only tells apart caches of the
    same encoder with other weights; the backbone is never loaded. ``factors`` are what a sweep varies, for people.
    """

    work: Workspace
    encoder: str
    reference: str
    seeds: tuple[int, ...]
    weights: Path | None
    factors: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What people call the job: encoder, decoder, and what a sweep varies."""
        varied = (f"{name} = {value}" for name, value in self.factors.items())
        return ", ".join([self.encoder, self.settings.decoder, *varied])

    @property
    def slug(self) -> str:
        """The encoder's name as files have it."""
        return slug_of(self.encoder)

    @property
    def folder(self) -> Path:
        """The folder of the job's runs."""
        return self.work.results / self.slug / self.settings.decoder

    @cached_property
    def settings(self) -> TrainSettings:
        """The study's training protocol."""
        return settings_of(self.work.study)

    @cached_property
    def about(self) -> Description:
        """The encoder, without its weights."""
        return self.work.describe(self.reference)

    @cached_property
    def geometry(self) -> Geometry:
        """What the decoder has to connect."""
        px = self.work.study.data.tile_px
        frame = self.about.run_px if self.about.fit == "pad" else px
        grid = self.about.grid
        return Geometry(grid.d, (grid.h, grid.w), px, frame, len(self.work.dataset.classes))

    @cached_property
    def tokens(self) -> GridStore:
        """The encoder's feature cache; see :meth:`Workspace.find_tokens`.

        Where the study wants int8 and there is the exact form only, the error says how to convert it.
        """
        try:
            return self.work.find_tokens(self.reference, self.weights)
        except NoCache:
            if self.work.study.cache.encoding == "int8" and (exact := self.exact_tokens()) is not None:
                raise OtherCache(
                    f"{self.encoder} is cached as float16, not as int8",
                    where=exact.path,
                    remedy=f"Convert it: frostgrid cache convert {exact.path} --to int8.",
                ) from None
            raise

    def exact_tokens(self) -> GridStore | None:
        """Return the encoder's float16 cache, from which an int8 one is converted; None where there is none."""
        study = self.work.study
        exact = study.model_copy(update={"cache": study.cache.model_copy(update={"encoding": "float16"})})
        try:
            return self.work.of(exact).find_tokens(self.reference, self.weights)
        except InputError:
            return None

    @cached_property
    def masks(self) -> GridStore:
        """The views store."""
        return self.work.masks_store(create=False)

    @property
    def cached(self) -> bool:
        """Whether there is a feature cache for the job at all.

        Raises :class:`pipeline.choosing.UnclearCache` where there are several.
        """
        try:
            return bool(self.tokens.key)
        except NoCache:
            return False

    def check(self) -> None:
        """Raise :class:`InputError` for a decoder that does not go with the grid, or too few training tiles."""
        with torch.device("meta"):
            build_decoder(self.settings.decoder, self.geometry, **self.settings.options)
        self.work.training_tiles()

    @cached_property
    def tiles(self) -> dict[str, list[Tile]]:
        """The tiles of each split that the job's runs see."""
        return {**self.work.tiles, "train": self.work.training_tiles()}

    def needs(self) -> dict[str, tuple[list[Tile], int]]:
        """Return what the job's runs are trained on: by split its tiles, and how many views of each."""
        views = {"train": self.work.study.training_views}
        return {split: (self.tiles[split], views.get(split, 1)) for split in SPLITS}

    def selection(self, tiles: TileSet) -> Selection:
        """Return where that is among ``tiles``."""
        return {split: (tiles.positions(some), views) for split, (some, views) in self.needs().items()}

    def identity(self, seed: int) -> dict[str, Any]:
        """Return everything that decides the result of one run, as JSON-able values."""
        return {
            "tokens": self.tokens.key,
            **self._settled(seed),
        }

    def _settled(self, seed: int) -> dict[str, Any]:
        """The identity but for the feature cache: what is known where the cache is not at hand."""
        return {
            "revision": RUN_REVISION,
            "masks": self.work.masks_key,
            "tiles": self._tiles_key,
            "views": self.work.study.training_views,
            "classes": list(self.work.dataset.classes),
            "encoding": self.work.study.cache.encoding,
            "settings": {**asdict(self.settings), "options": dict(self.settings.options)},
            "decoder_source": decoder_source(self.settings.decoder),
            "geometry": asdict(self.geometry),
            "seed": seed,
        }

    @cached_property
    def _tiles_key(self) -> str:
        return fingerprint(
            {split: [[tile.key, tile.mask_key] for tile in self.tiles[split]] for split in SPLITS}
        )

    def run_folder(self, seed: int) -> Path:
        """Return where the run of ``seed`` belongs; other inputs have another folder, and nothing is overwritten."""
        return self.folder / f"seed-{seed:03d}-{fingerprint(self.identity(seed))[:8]}"

    def finished(self, seed: int) -> StoredRun | None:
        """Return the finished run of ``seed`` of the study as it is now, if there is one.

        Where the feature cache is not at hand, a run made from a cache that fits is as good. Raises
        :class:`store.errors.VerificationError` naming the file when it is damaged, or the folder when it holds the run
        of other inputs; :class:`UnclearCache` when runs of several caches fit.
        """
        if self.cached:
            folder = self.run_folder(seed)
            return same_run(load_run(folder), self.identity(seed)) if folder.is_dir() else None
        wanted = json.loads(canonical_json(self._settled(seed)))
        fits = []
        for folder in run_folders(self.folder, f"seed-{seed:03d}-*"):
            with suppress(VerificationError):  # it may be any run: whoever reports the results names it
                identity = read_record(folder)["identity"]
                if {name: identity.get(name) for name in wanted} == wanted:
                    fits.append(folder)
        if len(fits) > 1:
            raise UnclearCache(
                f"{len(fits)} runs of {self.encoder}, seed {seed}, fit this study, made from different caches",
                where=self.folder,
                remedy="Give the --cache they were made from, with --dtype where it holds several precisions.",
            )
        return load_run(fits[0]) if fits else None

    def task(self, seed: int, selection: Selection) -> RunTask:
        """Return the run of ``seed`` as it is handed to whoever trains it."""
        return RunTask(
            title=f"{self.title}, seed {seed}",
            settings=self.settings,
            seed=seed,
            encoder=self.encoder,
            classes=tuple(self.work.dataset.classes),
            geometry=self.geometry,
            selection=selection,
            folder=self.run_folder(seed),
            identity={**self.identity(seed), "study": self.work.study.resolved(), "encoder": self.reference},
        )

    @cached_property
    def cost(self) -> float:
        """How much work an epoch of a run is, in GFLOP: what the decoder computes, and the loss of each logit."""
        logits = self.geometry.classes * self.geometry.target_px**2
        form = self.settings.upconv
        step = decoder_step_flop(self.settings.decoder, self.geometry, self.settings.options, form)
        return (step + LOGIT_FLOP * logits) * len(self.tiles["train"]) / 1e9

    def predict(self, run: StoredRun, views: Sequence[PlannedView]) -> NDArray[np.uint8]:
        """Return the predicted classes (N, px, px) uint8 of cached views."""
        tokens = self.tokens.reader().read_many([view.key for view in views])
        return predict(self.settings, self.geometry, run.result.weights, torch.from_numpy(tokens))
