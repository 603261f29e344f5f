"""A trained run on other labelled images, whole and of any size, through the windows that slides are mapped by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.console import Talk
from pipeline.slide_runs import TrainedRun, required_mpp, tile_mpp
from pipeline.slide_scores import Score
from pipeline.slide_windows import Windows
from pipeline.study import DataSection, read_study, validated
from pipeline.workspace import Workspace
from stages.metrics import Counts, confusions
from stages.slides.image_source import ArraySource
from stages.slides.scaled import ScaledSlide
from stages.slides.tissue import Tissue
from stages.tiles.dataset import IGNORE, ImageRecord, raise_all
from store.errors import FrostgridError, InputError

_NAMED = 10


def labelled_data(run: TrainedRun, path: Path, threads: int) -> Workspace:
    """Return the data set that ``path`` names: a study file, or a folder laid out and labelled as the run's data.

    Raises :class:`InputError` for a path that is neither, and for what is wrong with the study.
    """
    runs = run.folder.absolute().parents[3]
    if not path.is_dir():
        return Workspace(read_study(path), Path(), runs, threads)
    table = run.study.resolved()
    if table["data"]["kind"] == "demo":
        raise InputError(
            "the run was trained on generated tissue, which no folder holds",
            where=path,
            remedy="Give a study file.",
        )
    table["data"] = {**table["data"], "root": str(path)}
    return Workspace(validated({**table, "name": path.absolute().name}, path), Path(), runs, threads)


def evaluated(windows: Windows, work: Workspace, split: str, study_mpp: float | None, talk: Talk) -> Score:
    """Map every image of ``split`` ("all" or one of SPLITS) and count its pixels against its mask.

    Images are brought to the run's resolution as tiles are, masks by the pixel under each centre; all is taken for
    tissue. One that cannot be read is told and passed over; what goes wrong with another while it is mapped ends the
    work, since it is not the image's fault, and leaves the scores of those before. Raises :class:`InputError`, before
    anything is computed, for classes that are not the run's and images of unknown resolution, and what went wrong
    where no image could be scored.
    """
    run = windows.run
    classes = _matched(run.classes, work.dataset.classes)
    records = _records(work, split)
    steps = _steps(run, work, records, study_mpp)
    learned = _seen(run, work, records)
    if learned:
        talk.say(
            f"the run was trained or selected on {len(learned)} of these {len(records)} images, so that its scores say "
            "little of others; --split test of its own study has those it has not seen"
        )
    matrices: dict[str, Counts] = {}
    errors: list[FrostgridError] = []
    with talk.bar("Evaluating", "images") as update:
        for done, record in enumerate(records):
            update(done, len(records))
            try:
                slide, truth = _opened(work, record, steps[record.id], classes)
            except FrostgridError as error:
                talk.say(f"{record.id}: failed")
                errors.append(error)
                continue
            try:
                matrices[record.id] = _counted(windows, slide, truth)
            except FrostgridError as error:
                errors.append(error)
                break
        else:
            update(len(records), len(records))
    if not matrices:
        raise_all([error for error in errors if isinstance(error, InputError)], "Mend the images.")
        raise errors[0]
    names = tuple(matrices)
    left = tuple(record.id for record in records if record.id not in matrices)
    if left:
        talk.say(
            f"{len(names)} of {len(records)} images scored; the others count in no figure: {_some(left)}"
        )
    scored = np.concatenate(list(matrices.values()))
    return Score(run, work.study.name, split, names, scored, bool(learned & set(names)), left, tuple(errors))


def _matched(ours: Sequence[str], theirs: Sequence[str]) -> NDArray[np.uint8]:
    """Return the run's class of each class of the data set, by name; ``IGNORE`` stays what it is."""
    if set(ours) != set(theirs):
        missing, more = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
        what = [
            f"{', '.join(names)} {who}"
            for names, who in ((missing, "missing"), (more, "unknown to the run"))
            if names
        ]
        raise InputError(
            f"the classes of the data are not those of the run: {'; '.join(what)}",
            where="data.classes",
            remedy=f"Name its labels as the run does ({', '.join(ours)}), or list them under ignore.",
        )
    table = np.full(256, IGNORE, np.uint8)
    table[: len(theirs)] = [ours.index(name) for name in theirs]
    return table


def _records(work: Workspace, split: str) -> list[ImageRecord]:
    if split == "all":
        return list(work.records.values())
    return [work.records[name] for name in getattr(work.split, split)]


def _seen(run: TrainedRun, work: Workspace, records: Sequence[ImageRecord]) -> set[str]:
    """Return those of ``records`` that the run was trained or selected on, however the study at hand splits them."""
    if not _same_images(run.study.data, work.study.data):
        return set()
    own = Workspace(run.study, Path(), work.runs, work.threads).split
    return {*own.train, *own.val} & {record.id for record in records}


def _same_images(one: DataSection, other: DataSection) -> bool:
    """Return whether two studies read the same images: the same folder, or the demo's as one seed draws them."""
    roots = [None if data.root is None else Path(data.root).resolve() for data in (one, other)]
    fields = [(data.kind, data.images, data.size_px, data.seed) for data in (one, other)]
    return roots[0] == roots[1] and fields[0] == fields[1]


def _steps(
    run: TrainedRun, work: Workspace, records: Sequence[ImageRecord], study_mpp: float | None
) -> Mapping[str, float]:
    """Return the pixels of each image that one of the run's spans.

    By µm, where the run's study has any; else by the run's scale for its own images, by that of their study for others.
    """
    same = _same_images(run.study.data, work.study.data)
    scale = (run.study.data.scale or 1.0) if same else work.study.data.scale
    if scale is not None and run.mpp(study_mpp) is None and tile_mpp(work.study) is None:
        return {record.id: 1.0 / scale for record in records}
    mpp = required_mpp(run, study_mpp)
    faults = [
        InputError(
            "it is not known how many µm a pixel of the image has",
            where=record.path or record.id,
            remedy="Give data.image_mpp, or an mpp column in data.table.",
        )
        for record in records
        if record.mpp is None
    ]
    raise_all(faults, "Give them in the study of the data.")
    return {record.id: mpp / float(record.mpp or 1) for record in records}


def _opened(
    work: Workspace, record: ImageRecord, step: float, classes: NDArray[np.uint8]
) -> tuple[ScaledSlide, NDArray[np.uint8]]:
    """Return an image as a slide at the run's resolution, and the run's class of each of its pixels (H, W)."""
    source = ArraySource(record.path or Path(record.id), work.dataset.read_image(record), {})
    slide = ScaledSlide(source, step)
    return slide, classes[slide.nearest(work.dataset.read_mask(record))]


def _counted(windows: Windows, slide: ScaledSlide, truth: NDArray[np.uint8]) -> Counts:
    everywhere = Tissue(np.ones((slide.height, slide.width), np.bool_), 1, None)
    predicted = np.concatenate([band.labels for band in windows.mapper(slide, everywhere).run()])
    return confusions(predicted[None], truth[None], len(windows.run.classes))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
