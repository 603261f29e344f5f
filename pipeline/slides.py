"""Slides through a trained run: each becomes a folder of results, or an error that leaves the others alone."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.console import Talk
from pipeline.slide_results import Outcome, SlideFolder, Wishes, folder_name
from pipeline.slide_runs import required_mpp
from pipeline.slide_windows import Windows
from stages.slides.bands import BandFolder
from stages.slides.opening import open_slide
from stages.slides.scaled import ScaledSlide
from stages.slides.source import SlideSource
from stages.slides.tissue import Tissue, find_tissue
from store.disk_errors import storage_errors
from store.durable import make_folder
from store.errors import FrostgridError, InputError
from store.identity import canonical_json
from store.leases import hold

REVISION = 1  # raise it with any change that changes a map, or what is written of it
THUMBNAIL_PX = 1536  # at most, of the longer side
_SAME_MPP = 0.005  # relative; the digits that scanners write
_MAGNIFIED = 0.8  # level-0 pixels a map pixel, below which the slide is notably coarser than the study


@dataclass
class SlideMaker:
    """Maps slides into folders under ``output``, with one run; its encoder and decoder are shared by all of them."""

    windows: Windows
    wishes: Wishes
    output: Path
    talk: Talk

    def all(self, slides: Sequence[Path]) -> list[Outcome]:
        """Map every slide; one that cannot be mapped is told and passed over.

        Raises :class:`InputError` before anything is computed for what would hold for every slide: two of one name,
        a study of unknown resolution.
        """
        names = [folder_name(slide) for slide in slides]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise InputError(
                f"several slides would be written to {', '.join(doubled)}",
                where=self.output,
                remedy="Give those of one name in calls of their own, with another --output.",
            )
        map_mpp = required_mpp(self.windows.run, self.wishes.study_mpp)
        self.wishes = self.wishes.settled(map_mpp, self.windows.run.patch_px)
        outcomes = []
        for slide in slides:
            try:
                outcomes.append(self.one(slide, map_mpp))
            except FrostgridError as error:
                self.talk.say(f"{folder_name(slide)}: failed")
                outcomes.append(Outcome(slide, "failed", error=error))
        return outcomes

    def one(self, path: Path, map_mpp: float) -> Outcome:
        """Map a slide, going on where a killed process stopped. Raises what is wrong with it."""
        started = time.monotonic()
        source = open_slide(path)
        try:
            mpp = self._slide_mpp(source)
            slide = ScaledSlide(source, map_mpp / mpp)
            told = json.loads(canonical_json(self._parameters(source, mpp, map_mpp)))
            folder = SlideFolder(self.output / folder_name(path), told, self.windows.run.classes, map_mpp)
            folder.refuse_others()
            if (kept := folder.kept(self.talk)) is not None:
                size, found = kept
                return Outcome(path, "kept", folder.final, mpp, size, found, 0, 0, time.monotonic() - started)
            return self._made(slide, folder, mpp, started)
        finally:
            source.close()

    def _made(self, slide: ScaledSlide, folder: SlideFolder, mpp: float, started: float) -> Outcome:
        if slide.step < _MAGNIFIED:
            self.talk.say(
                f"{folder.name}: the slide has {mpp:g} µm a pixel, the study {folder.map_mpp:g}: it is magnified, "
                "which shows a decoder less detail than it was trained on"
            )
        with storage_errors(folder.work):
            make_folder(folder.work)
        with hold(folder.work, 0) as mine:
            if not mine:
                raise InputError(
                    "another process is at work on this slide",
                    where=folder.work,
                    remedy="Wait for it, or give another --output.",
                )
            bands = folder.begun(slide.height, slide.width, self.talk)
            factor = max(1, -(-max(slide.height, slide.width) // THUMBNAIL_PX))
            thumbnail = slide.thumbnail(factor)
            tissue = find_tissue(thumbnail, folder.map_mpp * factor, factor, self.wishes.tissue)
            encoded, cached = self._mapped(slide, tissue, bands, folder.name)
            self.talk.say(f"{folder.name}: mapped, being written")
            title = self._title(folder, tissue)
            found = folder.write(slide, bands, tissue, thumbnail, self.wishes, title)
        seconds = time.monotonic() - started
        self.talk.say(
            f"{folder.name}: {found[-1].mm2:.3f} mm² of tissue, {encoded} windows encoded, {cached} from the cache, "
            f"{seconds:.0f} s"
        )
        size = (slide.height, slide.width)
        path = slide.source.path
        return Outcome(path, "done", folder.final, mpp, size, tuple(found), encoded, cached, seconds)

    def _mapped(self, slide: ScaledSlide, tissue: Tissue, bands: BandFolder, name: str) -> tuple[int, int]:
        """Map what is not mapped yet, band by band; return how many windows were encoded and how many cached."""
        start = bands.finished()
        if start == bands.count:
            return 0, 0
        if not tissue.mask.any():
            self.talk.say(f"{name}: no tissue found; --tissue all takes every pixel for tissue")
        tokens = self.windows.tokens
        before = tokens.encoded, tokens.kept
        mapper = self.windows.mapper(slide, tissue, probabilities=self.wishes.probabilities)
        with self.talk.bar(f"Mapping {name}", "windows") as update:
            for band in mapper.run(start, update):
                bands.put(band)
        return tokens.encoded - before[0], tokens.kept - before[1]

    def _slide_mpp(self, source: SlideSource) -> float:
        own, said = source.mpp, self.wishes.mpp
        if own is not None and said is not None and abs(own - said) > _SAME_MPP * own:
            raise InputError(
                f"the slide says that it has {own:g} µm a pixel, not {said:g}",
                where=source.path,
                remedy="Leave --mpp out, or correct what the file says.",
            )
        found = said if own is None else own
        if found is None:
            raise InputError(
                "the slide does not say how many µm a pixel has (or says what no microscope has)",
                where=source.path,
                remedy="Give --mpp.",
            )
        return found

    def _parameters(self, source: SlideSource, mpp: float, map_mpp: float) -> dict[str, Any]:
        """Return everything that decides what is written of a slide."""
        run = self.windows.run
        return {
            **asdict(self.wishes),
            "revision": REVISION,
            "slide": dict(source.identity),
            "mpp": mpp,
            "study_mpp": map_mpp,
            "run": run.fingerprint,
            "classes": list(run.classes),
            "precision": self.windows.backbone.asked,
        }

    def _title(self, folder: SlideFolder, tissue: Tissue) -> str:
        run, threshold = self.windows.run, tissue.threshold
        how = "all of it taken for tissue" if threshold is None else f"tissue: stain above {threshold:.3f}"
        return f"{folder.name}: {run.encoder}, {run.settings.decoder}, {folder.map_mpp:g} µm/px; {how}"
