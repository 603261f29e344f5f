"""What is left of a slide: a folder of files, written beside its name and then given it, and what is said of it."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.console import Talk
from pipeline.report.palette import colours
from stages.slides.areas import Area, areas_of, counted, to_csv
from stages.slides.bands import BandFolder
from stages.slides.geojson import write_annotations
from stages.slides.ometiff import write_label_map
from stages.slides.picture import picture
from stages.slides.probabilities import write_probabilities
from stages.slides.regions import regions
from stages.slides.scaled import ScaledSlide
from stages.slides.tissue import Threshold, Tissue
from store.disk_errors import storage_errors
from store.documents import decode, encode_legibly, read_bytes
from store.durable import put_replacing, sync_folder
from store.errors import FrostgridError, InputError, VerificationError
from store.identity import differences, fingerprint

MAP, ANNOTATIONS, SUMMARY, THUMBNAIL = "map.ome.tif", "annotations.geojson", "summary.csv", "thumbnail.png"
PROBABILITIES, RECORD = "probabilities.zarr", "slide.json"
_VERSION = 1
_REMOVE = "Remove the folder."
_NAMES = "|".join(map(re.escape, (MAP, ANNOTATIONS, SUMMARY, THUMBNAIL, PROBABILITIES, RECORD)))
_RESULT = re.compile(_NAMES)
_WORK = re.compile(rf"made|former|({re.escape(RECORD)}|band-\d+\.npz|0\.\d+)(\.[\w-]+\.partial)?")


@dataclass(frozen=True)
class Wishes:
    """What is asked for of every slide.

    ``mpp``: µm a pixel of slides that do not say it; ``study_mpp``: of the study's tiles, where that is silent;
    ``overlap`` of neighbouring windows as a share of their side; ``tolerance_um`` and ``least_um2``: how far outlines
    may be smoothed, and the area below which regions are dropped and holes filled.
    """

    mpp: float | None = None
    study_mpp: float | None = None
    tissue: Threshold = "auto"
    overlap: float = 0.5
    tolerance_um: float | None = None
    least_um2: float | None = None
    probabilities: bool = False

    def settled(self, map_mpp: float, patch_px: float) -> Wishes:
        """Return them with what they leave open: a tolerance of two pixels of the map, an area of one token's patch."""
        tolerance = 2 * map_mpp if self.tolerance_um is None else self.tolerance_um
        least = (patch_px * map_mpp) ** 2 if self.least_um2 is None else self.least_um2
        return replace(self, tolerance_um=tolerance, least_um2=least)


@dataclass(frozen=True)
class Outcome:
    """What became of one slide. ``state``: "done", "kept" (it was there already) or "failed"; windows by origin."""

    slide: Path
    state: str
    folder: Path | None = None
    mpp: float | None = None
    size: tuple[int, int] | None = None
    areas: tuple[Area, ...] = ()
    encoded: int = 0
    cached: int = 0
    seconds: float = 0.0
    error: FrostgridError | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it: ``mpp`` of the slide, ``size`` (H, W) of the map, areas in mm²."""
        return {
            "slide": str(self.slide),
            "state": self.state,
            "folder": None if self.folder is None else str(self.folder),
            "mpp": self.mpp,
            "size": None if self.size is None else list(self.size),
            "mm2": {area.name: area.mm2 for area in self.areas},
            "windows": {"encoded": self.encoded, "cached": self.cached},
            "seconds": round(self.seconds, 2),
            "error": None if self.error is None else str(self.error),
        }


@dataclass(frozen=True)
class SlideFolder:
    """The folder ``final`` of a slide's results, and ``told``: JSON-able, everything that they follow from."""

    final: Path
    told: Mapping[str, Any]
    classes: tuple[str, ...]
    map_mpp: float

    @property
    def name(self) -> str:
        """What the slide is called."""
        return self.final.name

    @property
    def work(self) -> Path:
        """Where finished bands are kept until all are."""
        return self.final.with_name(f"{self.name}.work")

    def refuse_others(self) -> None:
        """Raise :class:`InputError` where the folder, or that of its work, holds what no slide left: it would go."""
        for folder, ours in ((self.final, _RESULT), (self.work, _WORK)):
            with storage_errors(folder):
                names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            others = sorted(name for name in names if not ours.fullmatch(name))
            if others or (folder.exists() and not folder.is_dir()):
                raise InputError(
                    f"what is there is no result of a slide ({others[0] if others else 'a file'})",
                    where=folder,
                    remedy="Move it away, or give another --output.",
                )

    def kept(self, talk: Talk) -> tuple[tuple[int, int], tuple[Area, ...]] | None:
        """Return size and areas of results that are there already, whole and made in this very way.

        Probabilities that nobody asks for now make no other map. Says why results that are there are made again. Raises
        :class:`InputError` where a newer version has made them.
        """
        data = read_bytes(self.final / RECORD)
        if data is None:
            return None
        try:
            record = decode("slide", _VERSION, data, self.final / RECORD, _REMOVE)
            whole = all(_sha256(self.final / file) == digest for file, digest in record["files"].items())
        except (VerificationError, OSError, KeyError):
            talk.say(f"{self.name}: what is there is damaged, and is made again")
            return None
        made = record["parameters"]
        if not self.told["probabilities"]:
            made = {**made, "probabilities": False}
        elif not (self.final / PROBABILITIES).is_dir():
            whole = False
        if made == self.told and whole:
            talk.say(f"{self.name}: kept ({self.final})")
            self._remove_work()  # of a process that was killed at the very end
            height, width = record["size"]
            counts = np.array(record["pixels"], np.int64)
            return (height, width), tuple(areas_of(counts, self.classes, self.map_mpp))
        talk.say(f"{self.name}: made anew ({self._why(made) if whole else 'a file there was changed'})")
        return None

    def begun(self, height: int, width: int, talk: Talk) -> BandFolder:
        """Return the bands of a map, of which those are there that were finished before in this very way.

        Says so, and why others are removed. Raises :class:`InputError` for those of a newer version.
        """
        path = self.work / RECORD
        bands = BandFolder(self.work, height, width)
        with storage_errors(self.work):
            data = read_bytes(path)
            try:
                record = {} if data is None else decode("slide", _VERSION, data, path, _REMOVE)
            except VerificationError:
                record = {"parameters": {"record": "damaged"}}
            if record.get("parameters") == self.told:
                talk.say(f"{self.name}: goes on after {bands.finished()} of {bands.count} bands")
                return bands
            if record:
                talk.say(f"{self.name}: what was begun is done anew ({self._why(record['parameters'])})")
            path.unlink(missing_ok=True)  # first: bands without a record are nobody's
            bands.clear()
            put_replacing(path, encode_legibly("slide", _VERSION, {"parameters": self.told}))
        return bands

    def write(
        self,
        slide: ScaledSlide,
        bands: BandFolder,
        tissue: Tissue,
        thumbnail: NDArray[np.uint8],
        wishes: Wishes,
        title: str,
    ) -> list[Area]:
        """Write everything of a finished map beside its bands, then give the folder its name and remove the bands.

        Returns the areas. Raises :class:`store.errors.StorageError`.
        """
        mpp, size = self.map_mpp, (slide.height, slide.width)
        palette = colours(np.arange(256, dtype=np.uint8))
        full = slide.source.levels[0]
        made, former = self.work / "made", self.work / "former"
        with storage_errors(made):
            for left in (made, former):
                shutil.rmtree(left, ignore_errors=True)
            made.mkdir()
            pixels = counted(bands.labels())
            found = areas_of(pixels, self.classes, mpp)
            write_label_map(
                made / MAP,
                bands.labels(),
                size,
                mpp=mpp,
                classes=self.classes,
                colours=palette,
                name=self.name,
                key=fingerprint(self.told),
            )
            write_annotations(
                made / ANNOTATIONS,
                regions(bands.labels(), least_pixels=(wishes.least_um2 or 0) / mpp**2),
                step=slide.step,
                tolerance=(wishes.tolerance_um or 0) / mpp,
                size=(full.height, full.width),
                classes=self.classes,
                colours=palette,
            )
            put_replacing(made / SUMMARY, to_csv(found))
            shown = picture(thumbnail, tissue, bands.sampled(tissue.factor), found, palette, title)
            put_replacing(made / THUMBNAIL, shown)
            if wishes.probabilities:
                write_probabilities(made / PROBABILITIES, bands.bands(), size, classes=self.classes, mpp=mpp)
            body = {
                "parameters": self.told,
                "size": list(size),
                "pixels": pixels[: len(self.classes)].tolist(),
                "tissue_threshold": tissue.threshold,
                "files": {file: _sha256(made / file) for file in (MAP, ANNOTATIONS, SUMMARY, THUMBNAIL)},
            }
            put_replacing(made / RECORD, encode_legibly("slide", _VERSION, body))
            sync_folder(made)
            if self.final.exists():
                self.final.rename(former)
            made.rename(self.final)
            sync_folder(self.final.parent)
        self._remove_work()
        return found

    def _remove_work(self) -> None:
        # Of a finished slide nobody needs it: what cannot go, or what another process removes just now, is no fault.
        shutil.rmtree(self.work, ignore_errors=True)

    def _why(self, made: Mapping[str, Any]) -> str:
        return "; ".join(str(difference) for difference in differences(made, self.told))


def folder_name(slide: Path) -> str:
    """Return what the folder of a slide's results is called: its name without extension."""
    return slide.stem.removesuffix(".ome") or slide.name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
