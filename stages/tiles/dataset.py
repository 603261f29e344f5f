"""What a data set is to the rest of frostgrid: records, classes, images and masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from store.errors import InputError, InputErrors

IGNORE = 255
"""Mask value of a pixel that belongs to no class and counts nowhere."""

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ImageRecord:
    """One image of a data set, before any pixel of it is read.

    ``id`` is unique in its data set; ``path`` and ``mask_path`` are ``None`` where the data set has no files.
    ``patient`` is ``None`` where unknown, ``split`` is one of train, val, test where the data set fixes it, and
    ``mpp`` is the size of a pixel in µm, ``None`` where unknown (never guessed).
    """

    id: str
    path: Path | None
    mask_path: Path | None
    patient: str | None = None
    split: str | None = None
    mpp: float | None = None


class Listing(NamedTuple):
    """What a data set's folders hold: the usable records, sorted by id, and every fault of the rest."""

    records: tuple[ImageRecord, ...]
    faults: tuple[InputError, ...]


class Dataset(Protocol):
    """Images with class masks. ``classes`` are in order: the index of a name is its class id.

    Implementations may be read from several threads at once.
    """

    @property
    def name(self) -> str:
        """Return the kind of the data set: ``puma``, ``folder`` or ``demo``."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names; class id = index."""

    def listing(self) -> Listing:
        """Return what can be used and, apart from it, every fault. Raises only where nothing can be listed."""

    def records(self) -> Sequence[ImageRecord]:
        """Return every record, sorted by id. Raises ``InputErrors`` where the listing has a fault."""

    def read_image(self, record: ImageRecord) -> NDArray[np.uint8]:
        """Return the image, (H, W, 3) uint8 RGB. Raises ``InputError`` naming the file that cannot be used."""

    def read_mask(self, record: ImageRecord) -> NDArray[np.uint8]:
        """Return the mask, (H, W) uint8 class ids or ``IGNORE``, of the image's size.

        Raises ``InputError`` for a mask of another size, an unknown label or a file that cannot be read.
        """


def raise_all(faults: Sequence[InputError], remedy: str) -> None:
    """Raise the fault itself where there is one, an ``InputErrors`` of all where there are several."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise InputErrors(faults, remedy=remedy)


def checked_records(listing: Listing, where: Path) -> tuple[ImageRecord, ...]:
    """Return the records of a listing that has no fault; raise all its faults otherwise."""
    raise_all(listing.faults, remedy=f"Mend the files in {where} and run the command again.")
    return listing.records


def flatten(error: InputError) -> tuple[InputError, ...]:
    """Return the single faults that an error stands for."""
    if isinstance(error, InputErrors):
        return tuple(single for fault in error.faults for single in flatten(fault))
    return (error,)


def paths_of(record: ImageRecord) -> tuple[Path, Path]:
    """Return the image and mask file of a record. Raises ``InputError`` for a record of a data set without files."""
    if record.path is None or record.mask_path is None:
        raise InputError(
            "the record has no files", where=record.id, remedy="Use the records of this data set."
        )
    return record.path, record.mask_path


def files_of(folder: Path, suffixes: Iterable[str], *, what: str) -> list[Path]:
    """Return the files directly in ``folder`` that have one of ``suffixes`` (lower case), sorted by name.

    Hidden files are passed over and nested folders are not searched. Raises ``InputError`` where the folder does
    not exist or cannot be listed; ``what`` names its content for that message.
    """
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(
            f"the folder of {what} {state}",
            where=folder,
            remedy="Correct the path in the study's [data] table.",
        )
    wanted = frozenset(suffixes)
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except PermissionError as error:
        raise InputError(
            f"the folder of {what} may not be listed", where=folder, remedy="Ask for the right to read it."
        ) from error
    return [
        path
        for path in entries
        if not path.name.startswith(".") and path.suffix.lower() in wanted and path.is_file()
    ]
