"""Pictures: tiles beside masks (the paper's Figure 2), and tile / truth / prediction of every encoder."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from pipeline.workspace import Workspace
from stages.metrics import counts, mean_dice, pooled_dice
from stages.tiles.dataset import IGNORE
from stages.tiles.plan import PlannedView

if TYPE_CHECKING:
    from pipeline.report.results import Result

# Okabe and Ito's palette: told apart with every kind of colour vision
_PALETTE = ("#D55E00", "#009E73", "#0072B2", "#F0E442", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_IGNORED = "#FFFFFF"
SHOWN_TILES = 4


def preview(workspace: Workspace, path: Path, *, tiles: int, views: int) -> None:
    """Draw ``tiles`` training tiles, each beside its mask and ``views`` of its augmented views with theirs."""
    chosen = workspace.tiles["train"][:tiles]
    columns = 2 * (1 + views)
    figure, axes = _grid(len(chosen), columns)
    for row, tile in enumerate(chosen):
        for view in range(1 + views):
            pixels, mask = workspace.source.pixels_and_mask(PlannedView(tile, view))
            _show(axes[row, 2 * view], pixels, f"{tile.name}" if view == 0 else f"view {view}")
            _show(axes[row, 2 * view + 1], colours(mask), "")
    _legend(figure, workspace.dataset.classes)
    _save(figure, path)


def predictions_picture(workspace: Workspace, result: Result, path: Path) -> None:
    """Draw the first test tiles beside their truth and the prediction of the encoder's first seed."""
    seed, run = next(iter(sorted(result.runs.items())))
    shown = workspace.tiles["test"][:SHOWN_TILES]
    predicted = result.job.predict(run, [PlannedView(tile, 0) for tile in shown])
    figure, axes = _grid(len(shown), 3)
    for row, (tile, prediction) in enumerate(zip(shown, predicted, strict=True)):
        pixels, mask = workspace.source.pixels_and_mask(PlannedView(tile, 0))
        dice = mean_dice(counts(prediction[None], mask[None], len(workspace.dataset.classes)))
        _show(axes[row, 0], pixels, tile.name)
        _show(axes[row, 1], colours(mask), "truth")
        _show(
            axes[row, 2],
            colours(np.where(mask == IGNORE, IGNORE, prediction)),
            f"prediction, Dice {dice:.2f}",
        )
    overall = 100 * mean_dice(run.result.best_counts("test"))
    per_class = ", ".join(
        f"{name} {100 * value:.1f}"
        for name, value in zip(
            workspace.dataset.classes, pooled_dice(run.result.best_counts("test")), strict=True
        )
    )
    title = f"{result.encoder}, {result.decoder}, seed {seed}: test Dice {overall:.1f} % ({per_class})"
    figure.suptitle(title, size=9, parse_math=False)
    _legend(figure, workspace.dataset.classes)
    _save(figure, path)


def colours(mask: NDArray[Any]) -> NDArray[np.uint8]:
    """Paint a (H, W) class mask as (H, W, 3) uint8 RGB; ignored pixels are white."""
    table = np.array([_rgb(_colour(index)) for index in range(256)], np.uint8)
    table[IGNORE] = _rgb(_IGNORED)
    return np.asarray(table[mask])


def _colour(index: int) -> str:
    """The palette first, then hues a golden angle apart, so that no two of many classes look alike."""
    if index < len(_PALETTE):
        return _PALETTE[index]
    return to_hex(colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.55, 0.75))


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def _grid(rows: int, columns: int) -> tuple[Figure, NDArray[Any]]:
    figure = Figure(figsize=(1.9 * columns, 2.1 * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axes: Any, pixels: NDArray[np.uint8], title: str) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_title(title, size=7, parse_math=False)
    axes.set_axis_off()


def _legend(figure: Figure, classes: Sequence[str]) -> None:
    handles = [Patch(color=_colour(index), label=name) for index, name in enumerate(classes)]
    handles.append(Patch(facecolor=_IGNORED, edgecolor="grey", label="ignored"))
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
