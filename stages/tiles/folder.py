"""Any folder of images with masks: label files, colour masks or QuPath annotations, and an optional table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.tiles.dataset import ImageRecord, Listing, checked_records, files_of, paths_of
from stages.tiles.geojson import GEOJSON_SUFFIXES, read_geojson_mask
from stages.tiles.images import IMAGE_SUFFIXES, image_size, read_image
from stages.tiles.labels import LABEL_SUFFIXES, ClassMap, read_label_mask
from stages.tiles.table import Row, read_table
from store.errors import InputError


class FolderDataset:
    """Images and masks matched by file stem, as any laboratory has them.

    Format: ``root/images`` holds 8-bit RGB PNG, JPEG or TIFF files, ``root/masks`` one mask an image: label PNG or TIFF
    (8 or 16 bit, palette as indices), RGB PNG or TIFF, or GeoJSON, named by the image's stem with ``mask_suffix``.
    Nested folders are not searched, hidden files are passed over. Where both folders are the same, masks are the files
    with the suffix, or the GeoJSON files where it is empty. ``table`` is a CSV under ``root`` with a column ``name`` or
    ``image`` (with or without extension) and, optionally, ``patient``, ``split`` and ``mpp``; see
    :func:`stages.tiles.table.read_table`.

    ``classes``, ``ignore``, ``unlabelled``, ``draw_order``: see :meth:`stages.tiles.labels.ClassMap.of`. ``image_mpp``:
    µm per pixel of images for which the table gives none. Raises ``InputErrors`` for a class table that cannot be used.
    """

    name = "folder"

    def __init__(
        self,
        root: Path | str,
        classes: Mapping[str, Sequence[int | str]],
        *,
        images: str = "images",
        masks: str = "masks",
        mask_suffix: str = "",
        table: str | None = None,
        image_mpp: float | None = None,
        draw_order: Sequence[str] | None = None,
        unlabelled: str = "ignore",
        ignore: Sequence[int | str] = (),
        patient_column: str = "patient",
        name_column: str | None = None,
    ) -> None:
        self.root = Path(root)
        self._map = ClassMap.of(classes, ignore=ignore, unlabelled=unlabelled, draw_order=draw_order)
        self.classes = self._map.classes
        self._images, self._masks, self._suffix = self.root / images, self.root / masks, mask_suffix
        self._table = None if table is None else self.root / table
        self._mpp = image_mpp
        self._columns = (patient_column, name_column)

    def records(self) -> tuple[ImageRecord, ...]:
        """Return every image, sorted by id (its stem). Raises ``InputErrors`` with every fault of the folders."""
        return checked_records(self.listing(), self.root)

    def listing(self) -> Listing:
        """Return the images that have a mask, and the faults: no mask, no image, doubled stems, table faults."""
        if not self.root.is_dir():
            raise InputError(
                "the data folder does not exist", where=self.root, remedy="Correct data.root in the study."
            )
        images, masks = self._files()
        if not images:
            raise InputError(
                "there is no image in the folder (nested folders are not searched)",
                where=self._images,
                remedy=f"Put {_words(IMAGE_SUFFIXES)} files there, or correct data.images in the study.",
            )
        faults = [*_doubled(images, "images"), *_doubled(masks, "masks")]
        faults += [self._without_mask(images[id][0], id) for id in sorted(images.keys() - masks.keys())]
        faults += [self._without_image(masks[id][0], id) for id in sorted(masks.keys() - images.keys())]
        rows: dict[str, Row] = {}
        if self._table is not None:
            patient_column, name_column = self._columns
            names = {path.name: id for id, paths in images.items() for path in paths}
            rows, table_faults = read_table(
                self._table, names, patient_column=patient_column, name_column=name_column
            )
            faults += table_faults
        usable = sorted(id for id in images if len(images[id]) == len(masks.get(id, ())) == 1)
        return Listing(
            tuple(self._record(id, images, masks, rows.get(id, Row())) for id in usable), tuple(faults)
        )

    def read_image(self, record: ImageRecord) -> NDArray[np.uint8]:
        """Return the image, (H, W, 3) uint8 RGB. Raises ``InputError``; see :func:`stages.tiles.images.read_image`."""
        return read_image(paths_of(record)[0])

    def read_mask(self, record: ImageRecord) -> NDArray[np.uint8]:
        """Return the mask, (H, W) uint8 class ids or ``IGNORE``.

        Raises ``InputError`` naming the file for another size than the image's and for every unknown label.
        """
        path, mask_path = paths_of(record)
        size = image_size(path)
        if mask_path.suffix.lower() in GEOJSON_SUFFIXES:
            return read_geojson_mask(mask_path, size, self._map)
        mask = read_label_mask(mask_path, self._map)
        if mask.shape != size:
            raise InputError(
                f"the mask is {mask.shape[1]} × {mask.shape[0]} px, its image {size[1]} × {size[0]} px",
                where=mask_path,
                remedy="Export the mask at the size of its image.",
            )
        return mask

    def _files(self) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        shared = self._images.resolve() == self._masks.resolve()
        images = files_of(self._images, IMAGE_SUFFIXES, what="images")
        kinds = GEOJSON_SUFFIXES if shared and not self._suffix else LABEL_SUFFIXES | GEOJSON_SUFFIXES
        masks = files_of(self._masks, kinds, what="masks")
        if shared and self._suffix:
            images = [path for path in images if not _stem(path).endswith(self._suffix)]
            masks = [path for path in masks if _stem(path).endswith(self._suffix)]
        return _by_id(images, ""), _by_id(masks, self._suffix)

    def _record(
        self, id: str, images: Mapping[str, list[Path]], masks: Mapping[str, list[Path]], row: Row
    ) -> ImageRecord:
        mpp = row.mpp if row.mpp is not None else self._mpp
        return ImageRecord(id, images[id][0], masks[id][0], row.patient, row.split, mpp)

    def _without_mask(self, image: Path, id: str) -> InputError:
        wanted = f"{id}{self._suffix}"
        other = [
            path.name
            for path in sorted(self._masks.iterdir())
            if _stem(path) == wanted and path != image and path.is_file()
        ]
        what = f"the image has no mask {wanted}.* in {self._masks}"
        if other:
            what += f" ({other[0]} is of a kind that is not read as a mask)"
        remedy = f"Add its mask ({_words(LABEL_SUFFIXES | GEOJSON_SUFFIXES)}) or take the image out."
        return InputError(what, where=image, remedy=remedy)

    def _without_image(self, mask: Path, id: str) -> InputError:
        return InputError(
            f"the mask has no image {id}.* in {self._images}",
            where=mask,
            remedy=f"Add its image ({_words(IMAGE_SUFFIXES)}) or take the mask out.",
        )


def _stem(path: Path) -> str:
    """Return the file's name without its extension, ``.ome.tif`` counting as one extension."""
    return path.stem.removesuffix(".ome")


def _by_id(paths: Iterable[Path], suffix: str) -> dict[str, list[Path]]:
    """Group files by stem without ``suffix``; a stem that lacks it keeps its name and so matches no image."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        stem = _stem(path)
        groups[stem[: len(stem) - len(suffix)] if stem.endswith(suffix) else f"{path.name}?"].append(path)
    return dict(groups)


def _doubled(groups: Mapping[str, list[Path]], what: str) -> list[InputError]:
    return [
        InputError(
            f"{len(paths)} {what} share the name {id!r}: {', '.join(path.name for path in paths)}",
            where=paths[0].parent,
            remedy="Keep one of them.",
        )
        for id, paths in sorted(groups.items())
        if len(paths) > 1
    ]


def _words(suffixes: Iterable[str]) -> str:
    return ", ".join(sorted(suffixes))
