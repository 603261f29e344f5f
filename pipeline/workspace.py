"""A study at work: its data set, split, tiles and views, and the stores that belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.study import SplitSection, Study
from stages.encoders import (
    AskedDtype,
    Description,
    Encoder,
    TokenGrid,
    canonical_name,
    describe_encoder,
    file_sha256,
    weights_at_hand,
)
from stages.tiles.check import class_counts
from stages.tiles.dataset import SPLITS, Dataset, ImageRecord
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
from store.identity import differences, fingerprint


class UnclearCache(InputError):
    """Several caches of one encoder fit a study, and nothing says which one is meant."""


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

    ``cache``: folder of the stores (default: the study's ``cache.root``); ``runs``: folder of results; ``dtype``: the
    precision in which encoders are run and whose caches are meant, "auto" for whichever there is.
    """

    study: Study
    cache: Path
    runs: Path
    threads: int
    dtype: AskedDtype = "auto"

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

    @property
    def _masks_identity(self) -> dict[str, Any]:
        return masks_identity(self.recipe, self.dataset.classes, self.study.data.tile_px)

    @property
    def masks_key(self) -> str:
        """The key of the views store, whether it is at hand or not."""
        return fingerprint(self._masks_identity)

    def masks_store(self, *, create: bool) -> GridStore:
        """The views store: masks and pixel hashes of every view."""
        return GridStore.at(
            self.cache,
            "views",
            self._masks_identity,
            mask_spec(self.study.data.tile_px),
            {"study": self.study.name},
            create=create,
        )

    def describe(self, encoder: str) -> Description:
        """Return what is known of an encoder, at the study's tile size, without its weights."""
        return describe_encoder(encoder, tile_px=self.study.data.tile_px, fit=self.study.encoders.fit)

    @cached_property
    def _weights(self) -> dict[str, Path]:
        """The weights that the study names, by canonical name. Raises :class:`InputError` for an unknown encoder."""
        return {canonical_name(name): Path(path) for name, path in self.study.encoders.weights.items()}

    def weights_of(self, encoder: str) -> Path | None:
        """Return the weights that the study names for a canonical name, or for the encoder whichever block is used."""
        return self._weights.get(encoder, self._weights.get(encoder.partition("@")[0]))

    def tokens_store(self, encoder: Encoder, *, create: bool) -> GridStore:
        """The feature cache of a loaded encoder over the study's views."""
        return GridStore.at(
            self.cache,
            slug_of(encoder.name),
            self._tokens_identity(encoder.identity),
            self._tokens_spec(encoder.grid),
            encoder.provenance,
            create=create,
        )

    def find_tokens(self, encoder: str, weights: Path | None) -> GridStore:
        """Find an encoder's cache without loading it, as someone without the weights has to.

        All that is known without weights must match, and the precision where ``dtype`` says one. Where several caches
        do (made from other weight files or in another precision), ``weights`` decides by its sha256. Raises
        :class:`InputError` when there is none, naming what differs in the nearest one, and :class:`UnclearCache` when
        the choice is not clear.
        """
        about = self.describe(encoder)
        known = {} if self.dtype == "auto" else {"compute_dtype": self.dtype}
        wanted = self._tokens_identity({**about.identity, **known})
        slug = slug_of(about.name)
        stores = GridStore.beside(self.cache, slug)
        fits = [store for store in stores if not _known_differences(store, wanted)]
        file = None if weights is None else weights_at_hand(encoder, weights)
        if fits and file is not None:
            digest = file_sha256(file)
            if not any(_made_from(store, digest) for store in fits):
                raise InputError(
                    f"The cache of {encoder} was made from other weights than {file} (sha256 {digest[:12]})",
                    where=fits[0].path,
                    remedy="Extract with these weights, or leave them out to use what is cached.",
                )
            fits = [store for store in fits if _made_from(store, digest)]
        if len(fits) == 1:
            return fits[0]
        if fits:
            made = (store.identity["encoder"] for store in fits)
            how = (f"{one.get('compute_dtype')} from weights {str(one.get('weights'))[:12]}" for one in made)
            raise UnclearCache(
                f"{len(fits)} caches of {encoder} fit this study, made in {' and in '.join(how)}",
                where=", ".join(store.path.name for store in fits),
                remedy="Give --dtype or --weights FILE, or move the ones not wanted to another cache folder.",
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


def slug_of(encoder: str) -> str:
    """Return an encoder's canonical name as files have it."""
    return encoder.replace("@", "-block")


def _made_from(store: GridStore, digest: str) -> bool:
    return bool(store.identity["encoder"].get("weights", digest) == digest)


def _known_differences(store: GridStore, wanted: Mapping[str, Any]) -> list[str]:
    """Where a cache differs from what is wanted, among the fields that are known without weights."""
    found = dict(store.identity)
    found["encoder"] = {name: found["encoder"].get(name) for name in wanted["encoder"]}
    return [str(difference) for difference in differences(found, wanted)]
