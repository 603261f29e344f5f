"""A trained run on other labelled images, whole and of any size, through the windows that slides are mapped by."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from pipeline.console import Talk
from pipeline.slide_runs import TrainedRun, tile_mpp
from pipeline.slides import Windows, required_mpp
from pipeline.study import read_study, validated
from pipeline.workspace import Workspace
from stages.metrics import Counts, confusions, counts_of, mean_dice, pooled_dice
from stages.slides.image_source import ArraySource
from stages.slides.scaled import ScaledSlide
from stages.slides.tissue import Tissue
from stages.tiles.dataset import IGNORE, ImageRecord, flatten, raise_all
from store.durable import make_folder, put_replacing, storage_errors
from store.errors import InputError

RESULTS, TILES = "results.csv", "tiles.csv"


@dataclass(frozen=True, eq=False)
class Score:
    """How a run did: confusion matrices (N, C, C) of ``names``, the images of ``split`` of the data set ``data``.

    ``learned``: the run was trained or selected on images of this very data set.
    """

    run: TrainedRun
    data: str
    split: str
    names: tuple[str, ...]
    confusions: Counts
    learned: bool

    @property
    def counts(self) -> Counts:
        """Intersection, prediction and truth, (N, C, 3)."""
        return counts_of(self.confusions)

    @property
    def head(self) -> dict[str, Any]:
        """What tells the rows of one run from those of others."""
        return {
            "encoder": self.run.encoder,
            "decoder": self.run.settings.decoder,
            "seed": self.run.stored.result.seed,
            "split": self.split,
        }

    @property
    def title(self) -> str:
        """Which run, on what."""
        run = self.run
        return (
            f"{run.encoder}, {run.settings.decoder} on {self.data} ({self.split}): {len(self.names)} images"
        )

    @property
    def default_folder(self) -> Path:
        """Where the tables go if nobody says otherwise."""
        run = self.run
        return Path("evaluations") / self.data / f"{run.encoder}-{run.settings.decoder}-{run.folder.name}"

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON has them; None for a class that is nowhere."""
        dice = dict(zip(self.run.classes, pooled_dice(self.counts).tolist(), strict=True))
        mean = mean_dice(self.counts)
        return {
            **self.head,
            "data": self.data,
            "images": len(self.names),
            "dice": {name: None if math.isnan(value) else value for name, value in dice.items()},
            "mean_dice": None if math.isnan(mean) else mean,
            "trained_on_these": self.learned,
        }


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
    tissue. Raises :class:`InputError`, before anything is computed, for classes that are not the run's and images of
    unknown resolution.
    """
    run = windows.run
    classes = _matched(run.classes, work.dataset.classes)
    records = _records(work, split)
    steps = _steps(run, work, records, study_mpp)
    learned = work.study.data == run.study.data and split != "test"
    if learned:
        talk.say(
            "the run was trained or selected on images of this data set, so that its scores say little of others; "
            "--split test has those it has not seen"
        )
    matrices = []
    with talk.bar("Evaluating", "images") as update:
        for done, record in enumerate(records):
            update(done, len(records))
            matrices.append(_counted(windows, work, record, steps[record.id], classes))
        update(len(records), len(records))
    names = tuple(record.id for record in records)
    return Score(run, work.study.name, split, names, np.concatenate(matrices), learned)


def write_scores(score: Score, folder: Path) -> None:
    """Write ``results.csv`` (pooled, a row a class) and ``tiles.csv`` (a row an image and class)."""
    with storage_errors(folder):
        make_folder(folder)
        put_replacing(folder / RESULTS, _csv(_pooled(score)))
        put_replacing(folder / TILES, _csv(_by_image(score)))


def score_table(score: Score) -> Table:
    """Return the pooled Dice of each class and their mean, as a table for people."""
    table = Table()
    table.add_column("class")
    table.add_column("Dice %", justify="right")
    for name, value in zip(score.run.classes, pooled_dice(score.counts), strict=True):
        table.add_row(name, "–" if math.isnan(value) else f"{100 * value:.2f}")
    table.add_section()
    mean = mean_dice(score.counts)
    table.add_row("mean", "–" if math.isnan(mean) else f"{100 * mean:.2f}")
    return table


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


def _steps(
    run: TrainedRun, work: Workspace, records: Sequence[ImageRecord], study_mpp: float | None
) -> Mapping[str, float]:
    """Return the pixels of each image that one of the run's spans.

    By µm, where the run's study has any; else the evaluated study says it by its scale.
    """
    scale = work.study.data.scale
    told = scale is not None or work.study.data == run.study.data
    if told and run.mpp(study_mpp) is None and tile_mpp(work.study) is None:
        return {record.id: 1.0 / (scale or 1.0) for record in records}
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
    raise_all(
        [single for fault in faults for single in flatten(fault)], "Give them in the study of the data."
    )
    return {record.id: mpp / float(record.mpp or 1) for record in records}


def _counted(
    windows: Windows, work: Workspace, record: ImageRecord, step: float, classes: NDArray[np.uint8]
) -> Counts:
    source = ArraySource(record.path or Path(record.id), work.dataset.read_image(record), {})
    slide = ScaledSlide(source, step)
    everywhere = Tissue(np.ones((slide.height, slide.width), np.bool_), 1, None)
    predicted = np.concatenate([band.labels for band in windows.mapper(slide, everywhere).run()])
    truth = classes[slide.nearest(work.dataset.read_mask(record))]
    return confusions(predicted[None], truth[None], len(windows.run.classes))


def _pooled(score: Score) -> Iterator[dict[str, Any]]:
    dice = pooled_dice(score.counts)
    for index, name in enumerate(score.run.classes):
        value = "" if math.isnan(dice[index]) else repr(float(dice[index]))
        yield {**score.head, "class": name, "dice": value, **_three(score.counts.sum(axis=0)[index])}


def _by_image(score: Score) -> Iterator[dict[str, Any]]:
    for image, counts in zip(score.names, score.counts, strict=True):
        for index, name in enumerate(score.run.classes):
            yield {**score.head, "class": name, "tile": image, **_three(counts[index])}


def _three(counts: NDArray[np.int64]) -> dict[str, int]:
    return dict(zip(("intersection", "prediction", "truth"), map(int, counts), strict=True))


def _csv(rows: Iterator[dict[str, Any]]) -> bytes:
    held = list(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(held[0]), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(held)
    return text.getvalue().encode()
