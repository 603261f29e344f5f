"""The data of a study: which images it takes, for what, and the tiles and views that are made of them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.study import SplitSection, Study
from stages.tiles.check import class_counts
from stages.tiles.dataset import Dataset, ImageRecord
from stages.tiles.demo import DemoDataset
from stages.tiles.fewer import sufficient, training_order
from stages.tiles.folder import FolderDataset
from stages.tiles.plan import PlannedView, ViewSource, planned_views
from stages.tiles.puma import PumaDataset
from stages.tiles.split import Split, make_split
from stages.tiles.tiling import Tile, tiles_of
from stages.tiles.views import Recipe
from store.errors import InputError


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


class StudyData:
    """What follows from a study's data, split and views, computed on first use and kept.

    A :class:`pipeline.workspace.Workspace` gives it its fields. ``runs``: folder of results; ``threads`` read and
    render tiles; ``base``: the same for the study that this one is a variant of, with the same data.
    """

    study: Study
    runs: Path
    threads: int
    base: StudyData | None

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
            fits = all(number in (None, size) for number, size in zip(numbers, sizes, strict=True))
            if fits and kept.seed == wanted.seed:
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
        used = [self.records[name] for _, names in split.parts() for name in names]
        split.check_classes(class_counts(self.dataset, used, threads=self.threads), self.dataset.classes)
        return split

    @cached_property
    def tiles(self) -> dict[str, list[Tile]]:
        """The tiles of each split, in a fixed order."""
        found = tiles_of(
            self.dataset,
            [self.records[name] for _, names in self.split.parts() for name in names],
            px=self.study.data.tile_px,
            step_of=lambda record: source_pixels_per_tile_pixel(self.study, record),
            tiling=self.study.data.tiles,
            threads=self.threads,
        )
        by_image: dict[str, list[Tile]] = {}
        for tile in found:
            by_image.setdefault(tile.record.id, []).append(tile)
        return {
            split: [tile for name in names for tile in by_image[name]] for split, names in self.split.parts()
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

    @cached_property
    def recipe(self) -> Recipe:
        """The augmentation recipe."""
        return recipe_of(self.study)

    @cached_property
    def source(self) -> ViewSource:
        """Renders the study's views."""
        return ViewSource(self.dataset, self.recipe)
