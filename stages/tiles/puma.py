"""The PUMA melanoma data set, in the layout its archives unpack to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.tiles.dataset import ImageRecord, Listing, checked_records, files_of, paths_of
from stages.tiles.geojson import read_geojson_mask
from stages.tiles.images import image_size, read_image
from stages.tiles.labels import ClassMap
from store.errors import InputError

ROI_FOLDER = "01_training_dataset_tif_ROIs"
TISSUE_FOLDER = "01_training_dataset_geojson_tissue"
ROI_FILE = re.compile(r"(training_set_(?:primary|metastatic)_roi_\d{3})\.tif")
TISSUE_FILE = re.compile(r"(training_set_(?:primary|metastatic)_roi_\d{3})_tissue\.geojson")
RECORD = "14869398"
DOI = "10.5281/zenodo.14869398"

_GET = "Run `frostgrid data get puma FOLDER`, or point data.root at the folder that holds both."


class PumaDataset:
    """PUMA: panoptic segmentation of nuclei and tissue in advanced melanoma, the public training set.

    What it is: H&E regions of 1024 × 1024 px at about 0.23 µm/px from primary and metastatic melanoma, scanned at
    40×, one region a patient, with annotated tissue and nuclei.

    Features:
        * 310 regions in the paper (155 primary, 155 metastatic); about 205 of them are public
        * tissue polygons and multipolygons, with holes; nuclei are not used here

    Format: ``01_training_dataset_tif_ROIs/training_set_{primary|metastatic}_roi_NNN.tif`` (8-bit RGBA or RGB), and
    ``01_training_dataset_geojson_tissue/training_set_{primary|metastatic}_roi_NNN_tissue.geojson`` (QuPath), under
    ``root``.

    Tissue labels:
        ``tissue_tumor``, ``tissue_stroma``, ``tissue_epidermis``, ``tissue_necrosis``, ``tissue_blood_vessel``,
        ``tissue_white_background``; the benchmark merges the last four into one class (paper, section 3.1).

    Citation: Schuiveling et al., "A novel dataset for nuclei and tissue segmentation in melanoma with baseline nuclei
    segmentation and tissue segmentation benchmarks", GigaScience 2025, https://doi.org/10.1093/gigascience/giaf011.
    Data: https://doi.org/10.5281/zenodo.14869398. Licence: CC0-1.0.

    ``classes``: class name to tissue labels; every label belongs to a class or to ``ignore``. ``unlabelled`` and
    ``draw_order``: see :meth:`stages.tiles.labels.ClassMap.of`. A record's patient is its region, as each region is of
    another patient. Raises ``InputErrors`` for a class table that cannot be used.
    """

    name = "puma"
    mpp = 0.23
    labels = (
        "tissue_tumor",
        "tissue_stroma",
        "tissue_epidermis",
        "tissue_necrosis",
        "tissue_blood_vessel",
        "tissue_white_background",
    )

    def __init__(
        self,
        root: Path | str,
        classes: Mapping[str, Sequence[int | str]],
        *,
        draw_order: Sequence[str] | None = None,
        unlabelled: str = "ignore",
        ignore: Sequence[int | str] = (),
    ) -> None:
        self.root = Path(root)
        self._map = ClassMap.of(classes, ignore=ignore, unlabelled=unlabelled, draw_order=draw_order)
        self.classes = self._map.classes
        given = {str(label) for labels in (*classes.values(), ignore) for label in labels}
        wrong = [f"{label!r} is no tissue label" for label in sorted(given - set(self.labels))]
        wrong += [f"{label!r} is in no class" for label in self.labels if label not in given]
        if wrong:
            raise InputError(
                f"the classes do not fit PUMA's labels: {'; '.join(wrong)}",
                where="data.classes",
                remedy=f'Give each of {", ".join(self.labels)} a class, or list it under "ignore".',
            )

    def records(self) -> tuple[ImageRecord, ...]:
        """Return every region, sorted by id. Raises ``InputErrors`` with every fault of the folders."""
        return checked_records(self.listing(), self.root)

    def listing(self) -> Listing:
        """Return the regions that have tissue annotations, and the faults: a file without its partner, odd names.

        Raises ``InputError`` where a folder is missing or holds no region.
        """
        for folder in (self.root / ROI_FOLDER, self.root / TISSUE_FOLDER):
            if not folder.is_dir():
                raise InputError(
                    "there is no PUMA data: the folder does not exist", where=folder, remedy=_GET
                )
        regions, faults = _named(self.root / ROI_FOLDER, ROI_FILE, (".tif", ".tiff"))
        tissue, more = _named(self.root / TISSUE_FOLDER, TISSUE_FILE, (".geojson", ".json"))
        if not regions:
            raise InputError(
                "there is no PUMA region in the folder", where=self.root / ROI_FOLDER, remedy=_GET
            )
        faults += more
        for id in sorted(regions.keys() ^ tissue.keys()):
            path = regions.get(id) or tissue[id]
            missing = "tissue annotations" if id in regions else "image"
            remedy = f"Add the file, or move this one elsewhere. {_GET}"
            faults.append(InputError(f"the region has no {missing}", where=path, remedy=remedy))
        both = sorted(regions.keys() & tissue.keys())
        records = (ImageRecord(id, regions[id], tissue[id], patient=id, mpp=self.mpp) for id in both)
        return Listing(tuple(records), tuple(faults))

    def read_image(self, record: ImageRecord) -> NDArray[np.uint8]:
        """Return the region, (H, W, 3) uint8 RGB; alpha is dropped. Raises ``InputError`` naming the file."""
        return read_image(paths_of(record)[0])

    def read_mask(self, record: ImageRecord) -> NDArray[np.uint8]:
        """Return the drawn tissue, (H, W) uint8 class ids or ``IGNORE``. Raises ``InputError`` naming the file."""
        path, tissue = paths_of(record)
        return read_geojson_mask(tissue, image_size(path), self._map)


def _named(
    folder: Path, pattern: re.Pattern[str], suffixes: Sequence[str]
) -> tuple[dict[str, Path], list[InputError]]:
    """Return the files by region id, and a fault for each file whose name is not of the data set's form."""
    found: dict[str, Path] = {}
    faults = []
    for path in files_of(folder, suffixes, what="PUMA files"):
        match = pattern.fullmatch(path.name)
        if match:
            found[match.group(1)] = path
        else:
            faults.append(
                InputError(
                    "the file is not named as PUMA names its files", where=path, remedy="Move it elsewhere."
                )
            )
    return found, faults
