"""A look at a whole data set before it costs anything: what it holds, and everything that is wrong with it at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.tiles.dataset import IGNORE, Dataset, ImageRecord, flatten
from store.errors import FrostgridError, InputError
from store.identity import array_sha256

FORMAT = "frostgrid-check-1"


@dataclass(frozen=True)
class ImageCheck:
    """What one image holds: its size in pixels, its µm per pixel, and the pixels of each class and without class."""

    id: str
    height: int
    width: int
    patient: str | None
    split: str | None
    mpp: float | None
    pixels: tuple[int, ...]
    ignored: int


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: what, in which file or image, and what to do about it."""

    what: str
    where: str | None
    remedy: str | None

    @classmethod
    def of(cls, error: FrostgridError) -> Fault:
        """Return an error as a row of the report."""
        return cls(error.what, error.where, error.remedy)


@dataclass(frozen=True)
class CheckReport:
    """What a data set holds and what is wrong with it. ``duplicates``: ids of images with identical pixels."""

    dataset: str
    classes: tuple[str, ...]
    images: tuple[ImageCheck, ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    faults: tuple[Fault, ...] = ()
    pixels: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        totals = [sum(image.pixels[index] for image in self.images) for index in range(len(self.classes))]
        object.__setattr__(self, "pixels", tuple(totals))

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    @property
    def ignored(self) -> int:
        """Pixels that belong to no class, over all images."""
        return sum(image.ignored for image in self.images)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each class among the pixels that have one; zeros where none has."""
        whole = sum(self.pixels)
        return tuple(pixels / whole if whole else 0.0 for pixels in self.pixels)

    @property
    def patients(self) -> dict[str, int]:
        """Images of each known patient, by name."""
        found: dict[str, int] = {}
        for image in self.images:
            if image.patient is not None:
                found[image.patient] = found.get(image.patient, 0) + 1
        return dict(sorted(found.items()))

    @property
    def sizes(self) -> dict[tuple[int, int], int]:
        """Images of each size (height, width) in pixels."""
        found: dict[tuple[int, int], int] = {}
        for image in self.images:
            found[image.height, image.width] = found.get((image.height, image.width), 0) + 1
        return dict(sorted(found.items()))

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON-able values."""
        return {
            "format": FORMAT,
            "dataset": self.dataset,
            "ok": self.ok,
            "classes": [
                {"name": name, "pixels": pixels, "share": share}
                for name, pixels, share in zip(self.classes, self.pixels, self.shares, strict=True)
            ],
            "ignored": self.ignored,
            "sizes": [{"height": h, "width": w, "images": n} for (h, w), n in self.sizes.items()],
            "patients": self.patients,
            "duplicates": [list(ids) for ids in self.duplicates],
            "images": [{**asdict(image), "pixels": list(image.pixels)} for image in self.images],
            "faults": [asdict(fault) for fault in self.faults],
        }


def check(dataset: Dataset, *, needs_mpp: bool = False, threads: int = 2) -> CheckReport:
    """Read every image and mask of ``dataset`` and report what they hold and every fault; nothing is raised for one.

    Faults: what the listing finds, an image or mask that cannot be read or used, images with identical pixels, an
    image without a labelled pixel, a class that no image has, and, with ``needs_mpp``, an image without µm per pixel.
    At most ``threads`` images are in memory.
    """
    try:
        records, listed = dataset.listing()
    except InputError as error:
        return CheckReport(dataset.name, dataset.classes, faults=tuple(map(Fault.of, flatten(error))))
    faults: list[FrostgridError] = list(listed)
    with ThreadPoolExecutor(max_workers=threads) as pool:
        looks = list(pool.map(lambda record: _look(dataset, record, needs_mpp), records))
    images = [image for image, _, _ in looks if image is not None]
    by_hash: dict[str, list[str]] = {}
    for record, (_, content, found) in zip(records, looks, strict=True):
        faults += found
        if content is not None:
            by_hash.setdefault(content, []).append(record.id)
    duplicates = tuple(tuple(ids) for ids in by_hash.values() if len(ids) > 1)
    faults += [
        InputError(
            f"images have identical pixels: {', '.join(ids)}",
            where=ids[-1],
            remedy="Keep one of them, or they end on both sides of a split.",
        )
        for ids in duplicates
    ]
    held = [sum(image.pixels[index] for image in images) for index in range(len(dataset.classes))]
    faults += [
        InputError(
            f"no mask that can be read has a pixel of class {name}",
            where="data.classes",
            remedy="Correct its labels, or take the class out.",
        )
        for name, pixels in zip(dataset.classes, held, strict=True)
        if not pixels
    ]
    return CheckReport(dataset.name, dataset.classes, tuple(images), duplicates, tuple(map(Fault.of, faults)))


def class_counts(
    dataset: Dataset, records: Sequence[ImageRecord], *, threads: int = 2
) -> dict[str, NDArray[np.int64]]:
    """Return the pixels of each class, (C,) int64, by image id. Raises what ``dataset.read_mask`` raises."""
    with ThreadPoolExecutor(max_workers=threads) as pool:
        counted = list(pool.map(lambda record: _count(dataset, dataset.read_mask(record)), records))
    return {record.id: counts for record, counts in zip(records, counted, strict=True)}


def _count(dataset: Dataset, mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.bincount(mask.ravel(), minlength=IGNORE + 1)[: len(dataset.classes)].astype(np.int64)


def _look(
    dataset: Dataset, record: ImageRecord, needs_mpp: bool
) -> tuple[ImageCheck | None, str | None, list[FrostgridError]]:
    """Return what an image holds (``None`` where it cannot be told), the hash of its pixels, and its faults."""
    faults: list[FrostgridError] = []
    content = height = width = pixels = None
    try:
        image = dataset.read_image(record)
        height, width = image.shape[:2]
        content = array_sha256(image)
        del image
    except FrostgridError as error:
        faults += flatten(error) if isinstance(error, InputError) else [error]
    try:
        pixels = tuple(int(count) for count in _count(dataset, dataset.read_mask(record)))
    except FrostgridError as error:
        found = flatten(error) if isinstance(error, InputError) else (error,)
        # A damaged image is met again when its mask asks for its size: once is enough.
        faults += [fault for fault in found if not (faults and fault.where == str(record.path))]
    where = record.path or record.id
    if needs_mpp and record.mpp is None:
        remedy = "Give data.image_mpp, an mpp column in the table, or data.scale instead of data.mpp."
        faults.append(InputError("the image has no µm per pixel", where=where, remedy=remedy))
    if pixels is not None and not any(pixels):
        remedy = "Annotate it, correct the labels, or take it out."
        faults.append(
            InputError("the mask has no pixel of any class", where=record.mask_path or where, remedy=remedy)
        )
    if height is None or width is None or pixels is None:
        return None, content, faults
    ignored = height * width - sum(pixels)
    held = ImageCheck(record.id, height, width, record.patient, record.split, record.mpp, pixels, ignored)
    return held, content, faults
