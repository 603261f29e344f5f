"""Tiles beside masks (the paper's Figure 2), and augmented views of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from pipeline.report.palette import IGNORED, colour_of, colours
from pipeline.workspace import Workspace
from stages.tiles.plan import PlannedView


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


def _grid(rows: int, columns: int) -> tuple[Figure, NDArray[Any]]:
    figure = Figure(figsize=(1.9 * columns, 2.1 * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axes: Any, pixels: NDArray[np.uint8], title: str) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_title(title, size=7, parse_math=False)
    axes.set_axis_off()


def _legend(figure: Figure, classes: Sequence[str]) -> None:
    handles = [Patch(color=colour_of(index), label=name) for index, name in enumerate(classes)]
    handles.append(Patch(facecolor=IGNORED, edgecolor="grey", label="ignored"))
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
