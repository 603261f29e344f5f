"""For every encoder its best, median and worst test tile: tile, truth, prediction and error, as small pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.finished import Finished
from pipeline.report.palette import IGNORED, colour_of
from pipeline.workspace import Workspace
from stages.metrics import tile_dice
from stages.tiles.dataset import IGNORE
from stages.tiles.plan import PlannedView
from stages.training.record import load_run

SIDE = 320  # of a picture, in pixels at most
RIGHT, WRONG = "#d9d9d9", "#c2185b"


@dataclass(frozen=True)
class Exhibit:
    """One tile of one encoder: ``which`` of its tiles it is, the Dice of that seed, and the pictures as data URLs."""

    which: str
    tile: str
    dice: float
    picture: str
    truth: str
    prediction: str
    error: str


@dataclass(frozen=True)
class Gallery:
    """The exhibits of one encoder, made with the decoder of ``seed``."""

    encoder: str
    seed: int
    exhibits: tuple[Exhibit, ...]


class Pictures:
    """Tiles and truths as data URLs, each made once for all encoders."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._made: dict[int, tuple[str, str, NDArray[np.uint8]]] = {}

    def of(self, index: int) -> tuple[str, str, NDArray[np.uint8]]:
        """Return picture, painted truth and mask (H, W) of a test tile. Raises what reading the data raises."""
        if index not in self._made:
            pixels, mask = self._workspace.source.pixels_and_mask(
                PlannedView(self._workspace.tiles["test"][index], 0)
            )
            self._made[index] = (_photograph(pixels), painted(mask), mask)
        return self._made[index]


def gallery(workspace: Workspace, result: Finished, pictures: Pictures) -> Gallery:
    """Show an encoder's best, median and worst test tile by the Dice of the tile, with its first finished seed.

    Raises :class:`store.errors.FrostgridError` where the feature cache or the images are not at hand.
    """
    seed, run = next(iter(sorted(result.runs.items())))
    dice = tile_dice(run.result.best_counts("test"))
    chosen = chosen_tiles(dice)
    tiles = workspace.tiles["test"]
    predicted = result.job.predict(
        load_run(run.folder), [PlannedView(tiles[index], 0) for index in chosen.values()]
    )
    exhibits = []
    for (which, index), labels in zip(chosen.items(), predicted, strict=True):
        picture, truth, mask = pictures.of(index)
        prediction = np.where(mask == IGNORE, IGNORE, labels).astype(np.uint8)
        exhibits.append(
            Exhibit(
                which,
                tiles[index].name,
                float(dice[index]),
                picture,
                truth,
                painted(prediction),
                _errors(labels, mask),
            )
        )
    return Gallery(result.encoder, seed, tuple(exhibits))


def chosen_tiles(dice: NDArray[np.float64]) -> dict[str, int]:
    """Name the best, median and worst of the tiles that have a Dice; fewer where there are fewer tiles."""
    order = [int(index) for index in np.argsort(-dice, kind="stable") if not np.isnan(dice[index])]
    places = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
    shown = ("best", "worst", "median")[: len(order)]
    return {which: order[place] for which, place in places.items() if which in shown}


def painted(mask: NDArray[np.uint8]) -> str:
    """Return a class mask (H, W) in the colours of its classes, as a data URL."""
    return _drawn(mask, [*(colour_of(index) for index in range(IGNORE)), IGNORED])


def _errors(labels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> str:
    wrong = np.where(mask == IGNORE, 2, labels != mask).astype(np.uint8)
    return _drawn(wrong, [RIGHT, WRONG, IGNORED])


def _drawn(indices: NDArray[np.uint8], colours: Sequence[str]) -> str:
    image = Image.fromarray(indices).convert("P")
    image.putpalette(b"".join(bytes.fromhex(colour[1:]) for colour in colours))
    return _url(_small(image, Image.Resampling.NEAREST), "PNG", optimize=True)


def _photograph(pixels: NDArray[np.uint8]) -> str:
    return _url(_small(Image.fromarray(pixels), Image.Resampling.LANCZOS), "JPEG", quality=85)


def _small(image: Image.Image, how: Image.Resampling) -> Image.Image:
    if max(image.size) <= SIDE:
        return image
    scale = SIDE / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), how)


def _url(image: Image.Image, form: str, **options: bool | int) -> str:
    data = io.BytesIO()
    image.save(data, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
