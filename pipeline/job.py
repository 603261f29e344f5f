"""One encoder's share of stage two: its cache, its data, and the runs of its seeds."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.choosing import UnclearCache
from pipeline.study import Study
from pipeline.workspace import Workspace, slug_of
from stages.decoders import Geometry, build_decoder
from stages.encoders import Description
from stages.tiles.dataset import SPLITS
from stages.tiles.plan import PlannedView
from stages.training.data import Features, ResidentFeatures, SplitData, StreamedFeatures
from stages.training.memory import available_memory, choose_residency
from stages.training.predict import predict
from stages.training.record import StoredRun, environment, load_run, write_run
from stages.training.run import EpochReport, train_run
from stages.training.settings import TrainSettings
from store import GridReader, GridStore, ViewKey
from store.errors import DamagedGrid, InputError, MissingViews
from store.identity import canonical_json, fingerprint

NAMED_TILES = 5  # in one message
MASK_SHARE = 0.2  # of the available memory; token grids take the larger part
RUN_REVISION = 1  # raise it with any change of stage two that changes results, in their last bits too


def settings_of(study: Study) -> TrainSettings:
    """Return the study's training protocol. Raises :class:`InputError` for a decoder that is not known."""
    train = study.train
    options = {"width": train.width} if train.decoder == "single-scale" else {}
    with torch.device("meta"):
        build_decoder(train.decoder, Geometry(1, (8, 8), 128, 128, 2), **options)  # refuses what is not known
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


@dataclass
class Job:
    """All seeds of one decoder on one encoder's cache.

    ``encoder`` is the canonical name, ``reference`` what the user wrote. ``weights`` only tells apart caches of the
    same encoder with other weights; the backbone is never loaded.
    """

    work: Workspace
    encoder: str
    reference: str
    seeds: tuple[int, ...]
    weights: Path | None

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
        """The encoder's feature cache; see :meth:`Workspace.find_tokens`."""
        return self.work.find_tokens(self.reference, self.weights)

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
        except UnclearCache:
            raise
        except InputError:
            return False

    def identity(self, seed: int) -> dict[str, Any]:
        """Return everything that decides the result of one run, as JSON-able values."""
        return {
            "tokens": self.tokens.key,
            **self._settled(seed),
        }

    def _settled(self, seed: int) -> dict[str, Any]:
        """The identity but for the feature cache: what is known where the cache is not at hand."""
        tiles = {split: [[tile.key, tile.mask_key] for tile in self.work.tiles[split]] for split in SPLITS}
        return {
            "revision": RUN_REVISION,
            "masks": self.work.masks_key,
            "tiles": fingerprint(tiles),
            "views": self.work.study.views.per_tile,
            "classes": list(self.work.dataset.classes),
            "encoding": self.work.study.cache.encoding,
            "settings": {**asdict(self.settings), "options": dict(self.settings.options)},
            "geometry": asdict(self.geometry),
            "seed": seed,
        }

    def run_folder(self, seed: int) -> Path:
        """Return where the run of ``seed`` belongs; other inputs have another folder, and nothing is overwritten."""
        return self.folder / f"seed-{seed:03d}-{fingerprint(self.identity(seed))[:8]}"

    def finished(self, seed: int) -> StoredRun | None:
        """Return the finished run of ``seed`` of the study as it is now, if there is one.

        Where the feature cache is not at hand, a run made from a cache that fits is as good. Raises
        :class:`store.errors.VerificationError` naming the file when it is damaged, :class:`UnclearCache` when runs of
        several caches fit.
        """
        if self.cached:
            folder = self.run_folder(seed)
            return load_run(folder) if folder.is_dir() else None
        wanted = json.loads(canonical_json(self._settled(seed)))
        runs = [load_run(folder) for folder in sorted(self.folder.glob(f"seed-{seed:03d}-*"))]
        fits = [run for run in runs if {name: run.identity.get(name) for name in wanted} == wanted]
        if len(fits) > 1:
            raise UnclearCache(
                f"{len(fits)} runs of {self.encoder}, seed {seed}, fit this study, made from different caches",
                where=self.folder,
                remedy="Give the --cache they were made from, with --dtype where it holds several precisions.",
            )
        return fits[0] if fits else None

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
        features = self._features(planned, device)
        masks = self._masks_array(len(planned))
        self._complete(self.masks, planned, mask_keys).read_many(mask_keys, out=masks)
        data = {}
        for split in SPLITS:
            rows = np.array(
                [[number[v.tile.key, v.tile.mask_key, v.view] for v in row] for row in views[split]],
                dtype=np.intp,
            )
            names = tuple(tile.name for tile in self.work.tiles[split])
            data[split] = SplitData(features, rows, masks, rows, names)
        return data

    def _masks_array(self, count: int) -> NDArray[np.uint8]:
        """Space for the masks: in memory where they take a small part of it, else in a file without a name."""
        px = self.work.study.data.tile_px
        if count * px * px <= MASK_SHARE * available_memory():
            return np.empty((count, px, px), np.uint8)
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            return np.memmap(file, np.uint8, "w+", shape=(count, px, px))

    def _features(self, planned: Sequence[PlannedView], device: torch.device) -> Features:
        keys = [view.key for view in planned]
        reader = self._complete(self.tokens, planned, keys)
        spec = reader.spec
        residency = choose_residency(spec.stored_nbytes * len(keys), device)
        if residency == "stream":
            return StreamedFeatures(reader, keys, spec, device)
        return ResidentFeatures.read(reader, keys, spec, device, on_device=residency == "device")

    def _complete(
        self, store: GridStore, planned: Sequence[PlannedView], keys: Sequence[ViewKey]
    ) -> GridReader:
        """Return the store's reader if it holds all ``keys``, those of ``planned``; else say which tiles it lacks."""
        reader = store.reader()
        missing = set(reader.missing(keys))
        if not missing:
            return reader
        lost = set(reader.damaged())
        lacking = dict.fromkeys(v.tile.name for v, key in zip(planned, keys, strict=True) if key in missing)
        present = {reader.row(key).name: key.tile for key in reader.views()}
        kept = {key.tile for key in (*reader.views(), *lost)}
        changed = [
            name
            for name, key in {v.tile.name: key for v, key in zip(planned, keys, strict=True)}.items()
            if name in present and key.tile not in kept
        ]
        what = f"{store.path.name} lacks {len(missing)} of the {len(keys)} views of this study"
        what += f" (tiles {_few(lacking)})"
        if changed:
            what += f"; these tiles are cached with other pixels or another mask: {_few(changed)}"
        if lost & missing:
            what += f"; of them {len(lost & missing)} were there and their shards are lost or cut"
            try:
                reader.row(next(key for key in keys if key in lost & missing))
            except DamagedGrid as first:
                what += f", such as {first.where}: {first.what}"
        raise MissingViews(
            what,
            where=store.path,
            remedy="Restore the images or masks that changed, or extract what is missing: "
            f"frostgrid extract STUDY --encoder {self.encoder}.",
        )

    def train(
        self,
        seed: int,
        data: dict[str, SplitData],
        device: torch.device,
        on_epoch: Callable[[EpochReport], None],
    ) -> None:
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
        folder = self.run_folder(seed)
        identity = {**self.identity(seed), "study": self.work.study.resolved(), "encoder": self.reference}
        try:
            write_run(folder, result, identity=identity, environment=environment(device))
        except InputError:
            if not folder.is_dir():
                raise
            load_run(folder)  # another process trained the same run meanwhile: same inputs, same result

    def predict(self, run: StoredRun, views: Sequence[PlannedView]) -> NDArray[np.uint8]:
        """Return the predicted classes (N, px, px) uint8 of cached views."""
        tokens = self.tokens.reader().read_many([view.key for view in views])
        return predict(self.settings, self.geometry, run.result.weights, torch.from_numpy(tokens))


def _few(names: Iterable[str]) -> str:
    first = list(islice(names, NAMED_TILES + 1))
    return ", ".join(first[:NAMED_TILES]) + (", …" if len(first) > NAMED_TILES else "")
