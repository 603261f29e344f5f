"""The tables that commands print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipeline.backbones import Backbones
from pipeline.console import bytes_text, duration_text
from pipeline.study import Study
from stages.encoders import (
    Description,
    describe_encoder,
    encoder_card,
    encoder_flop,
    known_encoders,
    weights_at_hand,
    weights_folder,
)
from stages.tiles.check import CheckReport
from store.errors import FrostgridError


def dice_table(summary: dict[str, Any]) -> Table:
    """Encoder × class, Dice (%) mean ± std over seeds, with parameters and token grid beside it (Tables 1 and 2)."""
    images = summary["images"]
    table = Table(
        title=f"{escape(summary['study']['name'])}: test Dice (%), mean ± std over seeds",
        caption=f"images: {images['train']} training, {images['val']} validation, {images['test']} test; "
        "Dice pooled over all test pixels of a class; interval: of the mean, over test "
        f"{summary['evidence']['unit']}",
    )
    table.add_column("encoder", no_wrap=True, overflow="fold")
    table.add_column("decoder")
    for name in (*summary["classes"], "mean"):
        table.add_column(escape(name), justify="right", no_wrap=name == "mean")
    table.add_column("95 % interval", justify="right")
    for name in ("seeds", "encoder par.", "decoder par.", "grid"):
        table.add_column(name, justify="right")
    for row in summary["results"]:
        table.add_row(
            escape(row["encoder"]),
            row["decoder"],
            *(_percent(row["dice"][name]) for name in summary["classes"]),
            _percent(row["mean_dice"]),
            _interval(row["mean_dice"]["ci"]),
            str(len(row["seeds"])),
            _count(row["encoder_parameters"]),
            _count(row["decoder_parameters"]),
            "×".join(map(str, row["grid"])),
        )
    return table


def plan_table(needs: dict[str, Any]) -> Table:
    """What a study needs before it runs."""
    place = f" (copies of {escape(needs['place'])})" if needs["place"] else ""
    table = Table(
        title=f"{needs['study']}: {needs['tiles']['train']}/{needs['tiles']['val']}/{needs['tiles']['test']} tiles, "
        f"{needs['views']} views of {needs['tile_px']} px",
        caption=f"{bytes_text(needs['bytes'])} of token grids before compression, {bytes_text(needs['free'])} free at "
        f"{needs['cache']}{place}; {needs['seeds']} seed(s) of {needs['steps']} steps an encoder; times from "
        f"{needs['gflop_per_second']:.0f} GFLOP/s of matrix products, and {needs['decoder_gflop_per_second']:.0f} of "
        f"convolutions for the decoder, measured on this {needs['device']} now",
    )
    for name in ("encoder", "grid", "views cached", "MB a view", "cache", "extract", "train"):
        table.add_column(name, justify="left" if name == "encoder" else "right")
    for row in needs["encoders"]:
        table.add_row(
            row["encoder"],
            "×".join(map(str, row["grid"])),
            f"{row['views_cached']} / {needs['views']}",
            f"{row['bytes_a_view'] / 1e6:.2f}",
            bytes_text(row["bytes"]),
            f"{row['encoder_flop'] / 1e12:.1f} TFLOP, {duration_text(row['encoder_seconds'])}",
            f"{row['decoder_flop'] / 1e12:.0f} TFLOP, {duration_text(row['decoder_seconds'])}",
        )
    return table


def encoder_rows(px: int, study: Study | None = None) -> list[dict[str, Any]]:
    """Every known encoder at a tile side of ``px`` pixels, or those of a study as it asks for them, as JSON-able rows.

    No network is asked. ``gflop`` is 10⁹ FLOP of one view, a multiply-add being two. ``weights`` is the file on this
    machine: named by the study, under FROSTGRID_WEIGHTS or in the Hub's cache; None where there is none, or where
    ``parameters`` says that none is needed. ``fault`` says why an encoder cannot be used; such a row may hold nothing
    else. Raises :class:`InputError` where FROSTGRID_WEIGHTS is no folder.
    """
    weights_folder()
    told = None if study is None else Backbones(study)
    rows = []
    for reference in known_encoders() if study is None else study.encoders.names:
        row: dict[str, Any] = {"name": reference, "aliases": list(encoder_card(reference).aliases)}
        row |= dict.fromkeys(_ABOUT) | {"weights": None, "fault": None}
        try:
            about = describe_encoder(reference, tile_px=px) if told is None else told.describe(reference)
            flop = encoder_flop(reference, tile_px=px) if told is None else told.flop(reference)
            row |= _about(about, flop)
            weights = weights_at_hand(reference) if told is None else told.weights_at_hand(reference)
            row["weights"] = None if weights is None else str(weights)
        except FrostgridError as error:
            row["fault"] = str(error)
        rows.append(row)
    return rows


_ABOUT = (
    "title", "parameters", "d", "patch", "input_px", "grid", "bytes_a_view", "gflop", "licence", "gated", "repo",
)  # fmt: skip


def _about(about: Description, flop: int) -> dict[str, Any]:
    return {
        "name": about.name,
        "title": about.title,
        "parameters": about.parameters,
        "d": about.grid.d,
        "patch": about.patch,
        "input_px": about.run_px,
        "grid": [about.grid.h, about.grid.w],
        "bytes_a_view": about.bytes_a_view,
        "gflop": flop / 1e9,
        "licence": about.licence,
        "gated": about.gated,
        "repo": about.repo,
    }


def encoder_table(rows: Sequence[dict[str, Any]], px: int) -> Table:
    """The encoder list as a table."""
    table = Table(
        title=f"Encoders at {px} px",
        caption="MB a view: float16 before compression. GFLOP: of one view, a multiply-add is two. Weights: here, on "
        "the Hugging Face Hub (where “gated”, after asking: frostgrid doctor), or a file that only you can bring. "
        "Repositories and paths: --json",
    )
    left = ("encoder", "also called", "licence", "gate", "weights")
    for name in (
        "encoder",
        "also called",
        "parameters",
        "d",
        "P",
        "input",
        "grid",
        "MB a view",
        "GFLOP",
        *left[2:],
    ):
        table.add_column(name, justify="left" if name in left else "right")
    for row in rows:
        if row["parameters"] is None:
            lacking = ("–",) * 9
            table.add_row(escape(row["name"]), ", ".join(row["aliases"]), *lacking, escape(row["fault"]))
            continue
        source = "Hub" if row["repo"] else "file"
        table.add_row(
            escape(row["name"]),
            ", ".join(row["aliases"]),
            _count(row["parameters"]),
            str(row["d"]),
            str(row["patch"]),
            str(row["input_px"]),
            "×".join(map(str, row["grid"])),
            f"{row['bytes_a_view'] / 1e6:.2f}",
            f"{row['gflop']:.0f}" if row["gflop"] else "–",
            escape(row["licence"]),
            "gated" if row["gated"] else "open",
            escape(row["fault"])
            if row["fault"]
            else "none needed"
            if row["parameters"] == 0
            else "here"
            if row["weights"]
            else source,
        )
    return table


def check_table(found: CheckReport) -> Table:
    """Classes and their pixels, with sizes and patients in the caption."""
    sizes = ", ".join(f"{count} of {w}×{h} px" for (h, w), count in found.sizes.items())
    patients = len(found.patients) or "unknown"
    table = Table(
        title=f"{len(found.images)} readable images",
        caption=f"sizes: {sizes or 'none'}; patients: {patients}; pixels ignored: {found.ignored:,}; "
        f"groups of identical images: {len(found.duplicates)}; faults: {len(found.faults)}",
    )
    for name in ("class", "pixels", "share", "images"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for index, name in enumerate(found.classes):
        holding = sum(image.pixels[index] > 0 for image in found.images)
        table.add_row(
            escape(name), f"{found.pixels[index]:,}", f"{100 * found.shares[index]:.1f} %", str(holding)
        )
    return table


def _percent(spread: dict[str, Any]) -> str:
    if spread["mean"] is None:
        return "–"
    std = "" if spread["std"] is None else f" ± {100 * spread['std']:.2f}"
    return f"{100 * spread['mean']:.2f}{std}"


def puma_table(scores: dict[str, Any]) -> Table:
    """The two tissue scores of the PUMA challenge."""
    table = Table(
        title=f"PUMA tissue Dice of {len(scores['images'])} images",
        caption="micro: pooled over all images, 0 without intersection; image: mean over images, 1 where both lack the "
        "class",
    )
    for name in ("class", "micro", "image"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name, micro in scores["micro"].items():
        table.add_row(name, f"{micro:.4f}", f"{scores['image'][name]:.4f}")
    return table


def _interval(ends: Sequence[float] | None) -> str:
    return "–" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def _count(parameters: int) -> str:
    if parameters >= 1_000_000:
        return f"{parameters / 1e6:.2f} M" if parameters < 1e8 else f"{parameters / 1e6:.0f} M"
    return f"{parameters:,}"
