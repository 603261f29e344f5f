"""Two studies: what differs between them, and what it did to Dice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.conclusions import percent_text
from pipeline.report.results import Result, collect
from pipeline.report.summary import clusters_of
from pipeline.workspace import Workspace
from stages.evidence import FEW_CLUSTERS, Resampling, holm
from stages.evidence.comparing import compare
from stages.evidence.words import p_phrase
from stages.metrics import Counts, mean_of_present, mean_over_classes, pooled_dice
from stages.tiles.tiling import Tile
from store.identity import differences


def contrast(a: Workspace, b: Workspace, seeds: int | None) -> dict[str, Any]:
    """Return how two studies differ and what each encoder that has runs of both makes of it, as JSON-able values.

    The Dice are those of the test images that both have, so that the same images are compared; ``paired`` says why not
    where there are none, and then nothing is tested. ``difference`` is B minus A. Raises as
    :func:`pipeline.report.results.collect` does.
    """
    results = [{result.encoder: result for result in collect(work, seeds) if result.runs} for work in (a, b)]
    pairs = _pairs(*results)
    common, why = _common(a, b)
    rows = [_row(a, b, one, other, common) for one, other in pairs]
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return {
        "a": a.study.name,
        "b": b.study.name,
        "study": [
            {"field": one.field, "a": one.stored, "b": one.wanted}
            for one in differences(_told(a.study.resolved()), _told(b.study.resolved()))
        ],
        "paired": why is None,
        "why_not": why,
        "images": len(common),
        "test_images": [len(work.split.test) for work in (a, b)],
        "clusters": rows[0]["clusters"] if rows else 0,
        "encoders": rows,
        "only_in_a": sorted(set(results[0]) - {one.encoder for one, _ in pairs}),
        "only_in_b": sorted(set(results[1]) - {other.encoder for _, other in pairs}),
    }


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Return what :func:`contrast` found in words."""
    a, b = ("A", "B") if found["a"] == found["b"] else (found["a"], found["b"])
    lines = [f"differs: {one['field']}: {_said(one['a'])} | {_said(one['b'])}" for one in found["study"]]
    lines = lines or ["the two studies say the same"]
    if found["why_not"] is not None:
        lines.append(f"not tested: {found['why_not']}")
    tests = sum(row["p"] is not None for row in found["encoders"])
    corrected = f" after correction for {tests} comparisons" if tests > 1 else ""
    for row in found["encoders"]:
        name = row["a"]["encoder"]
        if row["b"]["encoder"] != name:
            name = f"{name} | {row['b']['encoder']}"
        text = f"{name}: {percent_text(row['a']['mean'])} in {a}, {percent_text(row['b']['mean'])} in {b}"
        if row["p_holm"] is not None:
            low, high = row["ci"]
            apart = row["p_holm"] < 0.05
            better = (b if row["difference"] > 0 else a) + " is better" if apart else "cannot be told apart"
            text += (
                f"; {better} on these {found['images']} images ({100 * row['difference']:+.2f} points, 95 % interval "
                f"{100 * low:.2f} to {100 * high:.2f}, {p_phrase(row['p_holm'])}{corrected})"
            ).replace("-", "−")
        lines.append(text)
    if found["paired"] and 1 < found["clusters"] < FEW_CLUSTERS:
        lines.append(f"fewer than {FEW_CLUSTERS} independent images or patients: do not trust the intervals")
    if found["paired"] and found["clusters"] == 1:
        lines.append("one independent image or patient: nothing tells how others would come out")
    for side, name in (("a", a), ("b", b)):
        if found[f"only_in_{side}"]:
            lines.append(f"runs in {name} only: {', '.join(found[f'only_in_{side}'])}")
    return lines


def _said(value: Any) -> str:
    return "not set" if value is None else repr(value)


def _told(study: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in study.items() if name != "name"}


def _pairs(a: Mapping[str, Result], b: Mapping[str, Result]) -> list[tuple[Result, Result]]:
    """Pair the same encoders; where both studies have but one, these, whatever they are."""
    same = [(a[name], b[name]) for name in a if name in b]
    if not same and len(a) == len(b) == 1:
        return [(next(iter(a.values())), next(iter(b.values())))]
    return same


# What the masks that Dice are measured against depend on, and the images of the demo tissue, beside kind and root.
TRUTH = (
    *("classes", "ignore", "unlabelled", "draw_order"),
    *("images", "masks", "mask_suffix", "size_px", "seed"),
)


def _common(a: Workspace, b: Workspace) -> tuple[list[str], str | None]:
    """Return the ids of the test images of both studies, or why their Dice cannot be compared image by image.

    Where both read the same folder, what they read has to be the same by :data:`TRUTH`; of different folders, the
    tiles themselves, images and masks.
    """
    if a.dataset.classes != b.dataset.classes:
        return [], "their classes differ, and so does what a mean Dice is the mean of"
    one, other = a.study.data, b.study.data
    same_data = (one.kind, one.root) == (other.kind, other.root)
    if same_data and (unlike := [name for name in TRUTH if getattr(one, name) != getattr(other, name)]):
        fields = " and ".join(f"data.{name}" for name in unlike)
        verb = "differ" if unlike[1:] else "differs"
        return [], f"{fields} {verb}, and so may the images or the masks that their Dice are measured against"
    keys = [{tile.record.id: tile.mask_key for tile in work.tiles["test"]} for work in (a, b)]
    common = [id for id in keys[0] if id in keys[1] and (same_data or keys[0][id] == keys[1][id])]
    return (common, None) if common else ([], "they have no test image in common")


def _row(a: Workspace, b: Workspace, one: Result, other: Result, common: Sequence[str]) -> dict[str, Any]:
    sides = [_tested(work, result, common) for work, result in ((a, one), (b, other))]
    dice = [mean_over_classes(pooled_dice(counted)) for counted, _ in sides]
    estimates = [float(mean_of_present(values, axis=0)) for values in dice]
    row: dict[str, Any] = {
        side: {
            "encoder": result.encoder,
            "decoder": result.decoder,
            "seeds": sorted(result.runs),
            "mean": _number(estimate),
            "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        }
        for side, result, values, estimate in zip("ab", (one, other), dice, estimates, strict=True)
    }
    row |= {"difference": _number(estimates[1] - estimates[0]), "ci": None, "p": None, "clusters": 0}
    if common:
        (first, tiles), (second, others) = sides
        clusters = [clusters_of(tested) for tested in (tiles, others)]
        alike = clusters[0][1] == clusters[1][1]  # both by patient, or both by image
        named, renamed = (
            found if alike else [tile.record.id for tile in tested]
            for (found, _), tested in zip(clusters, (tiles, others), strict=True)
        )
        drawn = Resampling.of(named, first[0, :, :, 2])
        draws = (drawn.on(renamed).scores(second)[0], drawn.scores(first)[0])
        _, interval, p = compare((estimates[1], estimates[0]), draws, drawn.clusters)
        row |= {"ci": None if interval is None else list(interval), "p": p, "clusters": drawn.clusters}
    return row


def _tested(work: Workspace, result: Result, common: Sequence[str]) -> tuple[Counts, list[Tile]]:
    """Return the counts (seeds, tiles, C, 3) of the test tiles of the images in ``common`` (all, where none is)."""
    tiles = work.tiles["test"]
    kept = [index for index, tile in enumerate(tiles) if not common or tile.record.id in common]
    return result.test_counts[:, kept], [tiles[index] for index in kept]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
