"""How a run did on labelled images, as figures, as tables for people and as files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.scoresheets import by_class, by_tile, write_csv
from pipeline.slide_runs import TrainedRun
from stages.metrics import Counts, counts_of, mean_dice, pooled_dice
from store.disk_errors import storage_errors
from store.durable import make_folder
from store.errors import FrostgridError

RESULTS, TILES = "results.csv", "tiles.csv"


@dataclass(frozen=True, eq=False)
class Score:
    """How a run did: confusion matrices (N, C, C) of ``names``, the images of ``split`` of the data set ``data``.

    ``learned``: the run was trained or selected on some of these images. ``unscored``: the names of images of the split
    that are not among them, because of the ``errors``.
    """

    run: TrainedRun
    data: str
    split: str
    names: tuple[str, ...]
    confusions: Counts
    learned: bool
    unscored: tuple[str, ...] = ()
    errors: tuple[FrostgridError, ...] = ()

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
        run, scored = self.run, f"{len(self.names)}"
        if self.unscored:
            scored += f" of {len(self.names) + len(self.unscored)}"
        return f"{run.encoder}, {run.settings.decoder} on {self.data} ({self.split}): {scored} images"

    @property
    def default_folder(self) -> Path:
        """Where the tables go if nobody says otherwise."""
        run = self.run
        return Path("evaluations") / self.data / f"{run.encoder}-{run.settings.decoder}-{run.folder.name}"

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON has them; None for a class that is nowhere."""
        dice = dict(zip(self.run.classes, pooled_dice(self.counts).tolist(), strict=True))
        mean = float(mean_dice(self.counts))
        return {
            **self.head,
            "data": self.data,
            "images": len(self.names),
            "dice": {name: None if math.isnan(value) else value for name, value in dice.items()},
            "mean_dice": None if math.isnan(mean) else mean,
            "trained_on_these": self.learned,
            "unscored": list(self.unscored),
            "errors": [str(error) for error in self.errors],
        }


def write_scores(score: Score, folder: Path) -> None:
    """Write ``results.csv`` (pooled, a row a class) and ``tiles.csv`` (a row an image and class)."""
    with storage_errors(folder):
        make_folder(folder)
    classes = score.run.classes
    write_csv(folder / RESULTS, by_class(score.head, classes, score.counts))
    write_csv(folder / TILES, by_tile(score.head, classes, score.names, score.counts))


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
