"""A study at work: its data set, split, tiles and views, and the stores that belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backbones import Backbones
from pipeline.choosing import Wanted
from pipeline.journal import Journal, journal_of
from pipeline.study import SplitSection, Study
from stages.encoders import (
    AskedDtype,
    Description,
    Identified,
    TokenGrid,
    weights_at_hand,
)
from stages.tiles.check import class_counts
from stages.tiles.dataset import SPLITS, Dataset, ImageRecord
from stages.tiles.demo import DemoDataset
from stages.tiles.fewer import sufficient, training_order
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
from store import GridSpec, GridStore, ViewKey
from store.errors import InputError
from store.identity import fingerprint
from store.places.place import Place
from store.rows import Encoding

VIEWS = "views"  # the slug of a study's views store: masks and pixel hashes


def dataset_of(study: Study) -> Dataset:
    """Build the study's data set; nothing is read yet but the listing."""
    data = study.data
    if data.kind == "demo":
        wanted = data.split if isinstance(data.split, SplitSection) else SplitSection()
        images = sum(number or 0 for number in wanted.numbers(sides_known=False))
        return DemoDataset(images, size_px=data.size_px, seed=data.seed)
    root = Path(str(data.root)).absolute()  # so that messages name it whole
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

    ``cache``: folder of the stores; ``runs``: folder of results; ``dtype``: the precision in which encoders are run and
    whose caches are meant, "auto" for whichever there is; ``origin``: the place elsewhere whose caches ``cache`` holds
    copies of, where the study's ``cache.root`` is a URL; ``weights``: by canonical name, those given for this command,
    before the study's. ``base``: the workspace that this one was made from by :meth:`of`.
    """

    study: Study
    cache: Path
    runs: Path
    threads: int
    dtype: AskedDtype = "auto"
    origin: Place | None = None
    weights: Mapping[str, Path] = field(default_factory=dict)
    base: Workspace | None = field(default=None, repr=False)

    @property
    def results(self) -> Path:
        """The folder of the study's results."""
        return self.runs / self.study.name

    @property
    def journal(self) -> Journal:
        """What this process works on of the study, and what failed; one for all variants of it."""
        return journal_of(self.results)

    def of(self, study: Study) -> Workspace:
        """Return this workspace for a ``study`` that differs in training and encoding only, sharing what is known."""
        other = copy(self)
        other.study = study
        other.base = self.base or self
        return other

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
        """Which images are for training, validation and test.

        A split that was drawn for this study is kept in ``split.json`` with its results and used again, so that images
        which join the data set later move none of those there are.
        """
        wanted = self.study.data.split
        records = list(self.records.values())
        if isinstance(wanted, str):
            return self._checked(Split.read(Path(wanted), records))
        numbers = wanted.numbers(sides_known=all(record.split for record in records))
        if self.kept_split.is_file():
            kept = Split.read(self.kept_split, records)
            sizes = (len(kept.train), len(kept.val), len(kept.test))
            if kept.seed == wanted.seed and all(
                n in (None, size) for n, size in zip(numbers, sizes, strict=True)
            ):
                return self._checked(kept)
        counts = class_counts(self.dataset, records, threads=self.threads)
        return make_split(records, counts, *numbers, seed=wanted.seed, classes=self.dataset.classes)

    @property
    def kept_split(self) -> Path:
        """Where the split that was drawn for this study is kept."""
        return self.results / "split.json"

    def keep_split(self) -> None:
        """Keep the split with the study's results, where it was drawn and is not there yet."""
        if not isinstance(self.study.data.split, str):
            text = self.split.to_json()
            if not self.kept_split.is_file() or self.kept_split.read_text(encoding="utf-8") != text:
                self.split.write(self.kept_split)

    def _checked(self, split: Split) -> Split:
        used = [self.records[name] for _, part in split.parts() for name in part]
        split.check_classes(class_counts(self.dataset, used, threads=self.threads), self.dataset.classes)
        return split

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

    def training_tiles(self) -> list[Tile]:
        """Return the tiles that decoders are trained on, in their order: all of the training split, or ``train.tiles``.

        The few are among the more. Raises :class:`InputError` for more than there are, and for so few that a class is
        in none of them.
        """
        tiles, count = self.tiles["train"], self.study.train.tiles
        if count is None or count == len(tiles):
            return tiles
        if count > len(tiles):
            raise InputError(
                f"train.tiles is {count}, but the training split has {len(tiles)} tiles",
                where="train.tiles",
                remedy=f"Give {len(tiles)} or less, or a larger data.split.train.",
            )
        order, least = self._training_order
        if count < least:
            raise InputError(
                f"{count} of the training tiles do not hold every class",
                where="train.tiles",
                remedy=f"Give {least} or more.",
            )
        return [tiles[position] for position in sorted(order[:count])]

    @cached_property
    def _training_order(self) -> tuple[list[int], int]:
        if self.base is not None:  # every mask is read for it, once for all that are trained on the same data
            return self.base._training_order
        tiles, source = self.tiles["train"], ViewSource(self.dataset, self.recipe, memory=0)
        classes = len(self.dataset.classes)
        masks = (source.pixels_and_mask(PlannedView(tile, 0))[1] for tile in tiles)
        pixels = np.stack([np.bincount(mask.ravel(), minlength=classes)[:classes] for mask in masks])
        order = training_order([tile.key for tile in tiles], pixels, self.split.seed or 0)
        return order, sufficient(order, pixels)

    @cached_property
    def views(self) -> list[PlannedView]:
        """Every view the study needs, in store order."""
        held_out = [*self.tiles["val"], *self.tiles["test"]]
        return planned_views(self.tiles["train"], held_out, self.study.views.per_tile)

    def keys_of(self, slug: str) -> list[ViewKey]:
        """Return where the study's views are in a store of this slug: in the views store, or in a feature cache."""
        return [view.mask_key if slug == VIEWS else view.key for view in self.views]

    @cached_property
    def recipe(self) -> Recipe:
        """The augmentation recipe."""
        return recipe_of(self.study)

    @cached_property
    def source(self) -> ViewSource:
        """Renders the study's views."""
        return ViewSource(self.dataset, self.recipe)

    @property
    def _masks_identity(self) -> dict[str, Any]:
        return masks_identity(self.recipe, self.dataset.classes, self.study.data.tile_px)

    @property
    def masks_key(self) -> str:
        """The key of the views store, whether it is at hand or not."""
        return fingerprint(self._masks_identity)

    @property
    def wanted_masks(self) -> Wanted:
        """The views store, as the study asks for it."""
        return Wanted("masks", VIEWS, self._masks_identity)

    def masks_here(self) -> GridStore | None:
        """Return the views store if it is in the cache folder."""
        stores = (store for store in GridStore.beside(self.cache, VIEWS) if store.key == self.masks_key)
        return next(stores, None)

    def masks_store(self, *, create: bool) -> GridStore:
        """The views store: masks and pixel hashes of every view."""
        return GridStore.at(
            self.cache,
            VIEWS,
            self._masks_identity,
            mask_spec(self.study.data.tile_px),
            {"study": self.study.name},
            create=create,
        )

    def describe(self, encoder: str) -> Description:
        """Return what is known of an encoder, at the study's tile size, without its weights."""
        return self.backbones.describe(encoder)

    @cached_property
    def backbones(self) -> Backbones:
        """What the study says of its encoders."""
        return Backbones(self.study)

    def weights_of(self, encoder: str) -> Path | None:
        """Return the weights given for a canonical name, else the study's; see :meth:`Backbones.weights_of`."""
        return self.weights.get(encoder) or self.backbones.weights_of(encoder)

    def tokens_store(self, encoder: Identified, *, create: bool) -> GridStore:
        """The feature cache of a loaded encoder over the study's views."""
        return GridStore.at(
            self.cache,
            slug_of(encoder.name),
            self._tokens_identity(encoder.identity),
            self.tokens_spec(encoder.grid),
            encoder.provenance,
            create=create,
        )

    def wanted_tokens(self, encoder: str, weights: Path | None) -> Wanted:
        """Return the cache that the study asks for of an encoder, as far as it is known without loading it.

        The precision counts where ``dtype`` says one; ``weights`` decide among caches that are otherwise alike.
        Raises :class:`InputError` for an encoder that is not known.
        """
        about = self.describe(encoder)
        known = {} if self.dtype == "auto" else {"compute_dtype": self.dtype}
        return Wanted(
            title=encoder,
            slug=slug_of(about.name),
            identity=self._tokens_identity({**about.identity, **known}),
            weights=None if weights is None else weights_at_hand(encoder, weights),
        )

    def find_tokens(self, encoder: str, weights: Path | None) -> GridStore:
        """Find an encoder's cache without loading it, as someone without the weights has to.

        Raises :class:`InputError` when there is none, naming what differs in the nearest one, and
        :class:`pipeline.choosing.UnclearCache` when the choice is not clear.
        """
        wanted = self.wanted_tokens(encoder, weights)
        return wanted.choose(
            {store.path.name: store for store in GridStore.beside(self.cache, wanted.slug)},
            where=self.cache,
            remedy=f"Extract it: frostgrid extract STUDY --encoder {encoder}.",
        )

    def _tokens_identity(self, encoder: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "encoder": dict(encoder),
            "recipe": self.recipe.identity(),
            "encoding": self.study.cache.encoding,
        }

    def tokens_spec(self, grid: TokenGrid) -> GridSpec:
        """Return what a feature cache of the study keeps of one view: a token grid in the study's encoding."""
        encoding: Encoding = "int8" if self.study.cache.encoding == "int8" else "exact"
        return GridSpec("tokens", (grid.d, grid.h, grid.w), "float16", ("d", "h", "w"), encoding)


def slug_of(encoder: str) -> str:
    """Return an encoder's canonical name as files have it."""
    return encoder.replace("@", "-block")
