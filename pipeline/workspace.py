"""A study at work: its data set, split, tiles and views, and the stores that belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.study import SplitSection, Study
from stages.encoders import Description, Encoder, TokenGrid, describe_encoder, file_sha256
from stages.tiles.check import class_counts
from stages.tiles.dataset import Dataset, ImageRecord
from stages.tiles.demo import DemoDataset
from stages.tiles.folder import FolderDataset
from stages.tiles.plan import (
    PlannedView,
    ViewSource,
    mask_spec,
    masks_identity,
    planned_views,
)
from stages.tiles.puma import PumaDataset
from stages.tiles.split import Split, make_split
from stages.tiles.tiling import Tile, tiles_of
from stages.tiles.views import Recipe
from store import GridSpec, GridStore
from store.errors import InputError
from store.identity import differences

SPLITS = ("train", "val", "test")


def dataset_of(study: Study) -> Dataset:
    """Build the study's data set; nothing is read yet but the listing."""
    data = study.data
    if data.kind == "demo":
        wanted = data.split if isinstance(data.split, SplitSection) else SplitSection()
        return DemoDataset(wanted.train + wanted.val + wanted.test, size_px=data.size_px, seed=data.seed)
    root = Path(str(data.root))
    if data.kind == "puma":
        classes = {name: [str(label) for label in labels] for name, labels in data.classes.items()}
        return PumaDataset(
            root, classes, draw_order=data.draw_order, unlabelled=data.unlabelled, ignore=data.ignore
        )
    return FolderDataset(
        root,
        data.classes,
        images=data.images,
        masks=data.masks,
        mask_suffix=data.mask_suffix,
        table=data.table,
        image_mpp=data.image_mpp,
        draw_order=data.draw_order,
        unlabelled=data.unlabelled,
        ignore=data.ignore,
        patient_column=data.patient_column,
        name_column=data.name_column,
    )


def recipe_of(study: Study) -> Recipe:
    """Return the study's augmentation recipe."""
    views = study.views
    return Recipe(**views.affine.model_dump(), flip=views.flip, **views.jitter.model_dump(), seed=views.seed)


def source_pixels_per_tile_pixel(study: Study, record: ImageRecord) -> float:
    """Return how many source pixels one tile pixel spans.

    Raises :class:`InputError` where the study asks for an mpp and the image has none: it is never guessed.
    """
    if study.data.mpp is None:
        return 1.0 / (study.data.scale or 1.0)
    if record.mpp is None:
        raise InputError(
            "The study asks for a resolution in µm per pixel, but the image has none",
            where=record.path or record.id,
            remedy="Give data.image_mpp, an mpp column in data.table, or data.scale instead of data.mpp.",
        )
    return study.data.mpp / record.mpp


@dataclass
class Workspace:
    """Everything that follows from a study file, computed on first use and kept.

    ``cache``: folder of the stores (default: the study's ``cache.root``); ``runs``: folder of results.
    """

    study: Study
    cache: Path
    runs: Path
    threads: int

    @property
    def results(self) -> Path:
        """The folder of the study's results."""
        return self.runs / self.study.name

    @cached_property
    def dataset(self) -> Dataset:
        """The study's data set."""
        return dataset_of(self.study)

    @cached_property
    def records(self) -> dict[str, ImageRecord]:
        """All images of the data set by id."""
        return {record.id: record for record in self.dataset.records()}

    @cached_property
    def split(self) -> Split:
        """Which images are for training, validation and test."""
        wanted = self.study.data.split
        records = list(self.records.values())
        if isinstance(wanted, str):
            split = Split.read(Path(wanted), records)
            used = [self.records[name] for _, part in split.parts() for name in part]
            split.check_classes(class_counts(self.dataset, used, threads=self.threads), self.dataset.classes)
            return split
        counts = class_counts(self.dataset, records, threads=self.threads)
        return make_split(
            records,
            counts,
            train=wanted.train,
            val=wanted.val,
            test=wanted.test,
            seed=wanted.seed,
            classes=self.dataset.classes,
        )

    @cached_property
    def tiles(self) -> dict[str, list[Tile]]:
        """The tiles of each split, in a fixed order."""
        found = tiles_of(
            self.dataset,
            [self.records[name] for split in SPLITS for name in getattr(self.split, split)],
            px=self.study.data.tile_px,
            step_of=lambda record: source_pixels_per_tile_pixel(self.study, record),
            tiling=self.study.data.tiles,
            threads=self.threads,
        )
        by_image: dict[str, list[Tile]] = {}
        for tile in found:
            by_image.setdefault(tile.record.id, []).append(tile)
        return {
            split: [tile for name in getattr(self.split, split) for tile in by_image[name]]
            for split in SPLITS
        }

    @cached_property
    def views(self) -> list[PlannedView]:
        """Every view the study needs, in store order."""
        held_out = [*self.tiles["val"], *self.tiles["test"]]
        return planned_views(self.tiles["train"], held_out, self.study.views.per_tile)

    @cached_property
    def recipe(self) -> Recipe:
        """The augmentation recipe."""
        return recipe_of(self.study)

    @cached_property
    def source(self) -> ViewSource:
        """Renders the study's views."""
        return ViewSource(self.dataset, self.recipe)

    def masks_store(self, *, create: bool) -> GridStore:
        """The views store: masks and pixel hashes of every view."""
        labels = self.study.data.model_dump(
            mode="json", include={"kind", "classes", "ignore", "unlabelled", "draw_order"}
        )
        identity = masks_identity(self.recipe, self.dataset.classes, labels)
        return GridStore.at(
            self.cache,
            "views",
            identity,
            mask_spec(self.study.data.tile_px),
            {"study": self.study.name},
            create=create,
        )

    def describe(self, encoder: str) -> Description:
        """Return what is known of an encoder, at the study's tile size, without its weights."""
        return describe_encoder(encoder, tile_px=self.study.data.tile_px, fit=self.study.encoders.fit)

    def weights_of(self, encoder: str) -> Path | None:
        """Return the weights that the study names for an encoder, whichever block is used."""
        found = self.study.encoders.weights.get(
            encoder, self.study.encoders.weights.get(encoder.partition("@")[0])
        )
        return None if found is None else Path(found)

    def tokens_store(self, encoder: Encoder, *, create: bool) -> GridStore:
        """The feature cache of a loaded encoder over the study's views."""
        return GridStore.at(
            self.cache,
            _slug(encoder.name),
            self._tokens_identity(encoder.identity),
            self._tokens_spec(encoder.grid),
            encoder.provenance,
            create=create,
        )

    def find_tokens(self, encoder: str, weights: Path | None) -> GridStore:
        """Find an encoder's cache without loading it, as someone without the weights has to.

        All that is known without weights must match. Where several caches do (made from other weight files or in
        another precision), ``weights`` decides by its sha256. Raises :class:`InputError` when there is none, naming
        what differs in the nearest one, and when the choice is not clear.
        """
        about = self.describe(encoder)
        wanted = self._tokens_identity(about.identity)
        slug = _slug(about.name)
        stores = GridStore.beside(self.cache, slug)
        fits = [store for store in stores if not _known_differences(store, wanted)]
        if len(fits) > 1 and weights is not None and weights.is_file():
            digest = file_sha256(weights)
            fits = [store for store in fits if store.identity["encoder"]["weights"] == digest]
        if len(fits) == 1:
            return fits[0]
        if fits:
            raise InputError(
                f"{len(fits)} caches of {encoder} fit this study, made from other weights or in another precision",
                where=", ".join(store.path.name for store in fits),
                remedy="Give --weights FILE, or move the ones not wanted to another cache folder.",
            )
        nearest = min((_known_differences(store, wanted) for store in stores), key=len, default=[])
        differs = f"; the nearest one differs in {'; '.join(nearest)}" if nearest else ""
        raise InputError(
            f"There is no cache of {encoder} for this study{differs}",
            where=self.cache,
            remedy=f"Extract it first: frostgrid extract STUDY --encoder {encoder}.",
        )

    def _tokens_identity(self, encoder: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "encoder": dict(encoder),
            "recipe": self.recipe.identity(),
            "encoding": self.study.cache.encoding,
        }

    def _tokens_spec(self, grid: TokenGrid) -> GridSpec:
        return GridSpec("tokens", (grid.d, grid.h, grid.w), "float16", ("d", "h", "w"))


def _slug(encoder: str) -> str:
    return encoder.replace("@", "-block")


def _known_differences(store: GridStore, wanted: Mapping[str, Any]) -> list[str]:
    """Where a cache differs from what is wanted, among the fields that are known without weights."""
    found = dict(store.identity)
    found["encoder"] = {name: found["encoder"].get(name) for name in wanted["encoder"]}
    return [str(difference) for difference in differences(found, wanted)]
