"""Two studies: what differs between them, and what it did to Dice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.finished import Finished
from pipeline.report.conclusions import percent_text
from pipeline.report.results import Collected, collect
from pipeline.report.summary import clusters_of
from pipeline.workspace import Workspace
from stages.evidence import FEW_CLUSTERS, Resampling, holm
from stages.evidence.comparing import compare
from stages.evidence.words import p_phrase, seeds_text
from stages.metrics import Counts, mean_dice, mean_of_present
from stages.tiles.tiling import Tile
from store.identity import differences


def contrast(a: Workspace, b: Workspace, seeds: int | None) -> dict[str, Any]:
    """Return how two studies differ and what each encoder that has runs of both makes of it, as JSON-able values.

    The Dice are those of the test images that both have, over the seeds that both have; ``why_not`` says why there are
    none, and then nothing is tested. ``difference`` is B minus A, None where they have no seed in common. By study, in
    sentences, ``missing``: which runs there are not, ``left_out``: which were found and not taken, ``damaged``: which
    cannot be read. Raises as :func:`pipeline.report.results.collect` does.
    """
    collected = [collect(work, seeds) for work in (a, b)]
    results = [{one.encoder: one for one in found.results if one.runs} for found in collected]
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
        "clusters": max((row["clusters"] for row in rows), default=0),
        "encoders": rows,
        "only_in_a": sorted(set(results[0]) - {one.encoder for one, _ in pairs}),
        "only_in_b": sorted(set(results[1]) - {other.encoder for _, other in pairs}),
        "missing": [_missing(found.results) for found in collected],
        "left_out": [found.left_out for found in collected],
        "damaged": [_damaged(found) for found in collected],
    }


def _missing(found: Sequence[Finished]) -> list[str]:
    return [f"{result.encoder}, {seeds_text(result.missing)}" for result in found if result.missing]


def _damaged(found: Collected) -> list[str]:
    named = (str(error) for result in found.results for error in result.damaged.values())
    return [*(f"A run is damaged: {error}" for error in named), *found.damaged]


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
            reach = (
                f"{100 * row['difference']:+.2f} points, 95 % interval {100 * low:.2f} to {100 * high:.2f}"
            )
            text += (
                f"; {better} on these {found['images']} images "
                f"({reach.replace('-', '−')}, {p_phrase(row['p_holm'])}{corrected})"
            )
        if not row["seeds"]:
            text += "; not tested: they have no seed in common"
        elif row["other_seeds"]:
            text += f"; over {seeds_text(row['seeds'])} alone, which both have"
        lines.append(text)
    if found["paired"] and 1 < found["clusters"] < FEW_CLUSTERS:
        lines.append(f"fewer than {FEW_CLUSTERS} independent images or patients: do not trust the intervals")
    if found["paired"] and found["clusters"] == 1:
        lines.append("one independent image or patient: nothing tells how others would come out")
    for side, name in (("a", a), ("b", b)):
        if found[f"only_in_{side}"]:
            lines.append(f"runs in {name} only: {', '.join(found[f'only_in_{side}'])}")
    for at, name in enumerate((a, b)):
        lines += [f"missing in {name}: {one}" for one in found["missing"][at]]
        lines += [f"in {name}: {one}" for one in [*found["left_out"][at], *found["damaged"][at]]]
    return lines


def _said(value: Any) -> str:
    return "not set" if value is None else repr(value)


def _told(study: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in study.items() if name != "name"}


def _pairs(a: Mapping[str, Finished], b: Mapping[str, Finished]) -> list[tuple[Finished, Finished]]:
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
    if not common:
        return [], "they have no test image in common"
    areas = [_areas(work) for work in (a, b)]
    alike = [id for id in common if areas[0][id] == areas[1][id]]
    if not alike:
        return [], "their tiles cover other parts of the images (data.tiles, tile_px and the scale)"
    return alike, None


def _areas(work: Workspace) -> dict[str, float | None]:
    """Return the side, in source pixels, of what a test image shows of its middle; None for all of it, tile by tile."""
    whole = work.study.data.tiles == "grid"
    return {
        tile.record.id: None if whole else float(f"{tile.px * tile.step:.9g}") for tile in work.tiles["test"]
    }


def _row(a: Workspace, b: Workspace, one: Finished, other: Finished, common: Sequence[str]) -> dict[str, Any]:
    seeds = sorted(one.runs.keys() & other.runs.keys())
    used = [found.over(seeds) if seeds else found for found in (one, other)]
    sides = [_tested(work, result, common) for work, result in zip((a, b), used, strict=True)]
    dice = [mean_dice(counted) for counted, _ in sides]
    estimates = [float(mean_of_present(values, axis=0)) for values in dice]
    row: dict[str, Any] = {
        side: {
            "encoder": result.encoder,
            "decoder": result.decoder,
            "seeds": sorted(result.runs),
            "mean": _number(estimate),
            "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        }
        for side, result, values, estimate in zip("ab", used, dice, estimates, strict=True)
    }
    row |= {"seeds": seeds, "other_seeds": sorted(one.runs.keys() ^ other.runs.keys())}
    row |= {
        "difference": _number(estimates[1] - estimates[0]) if seeds else None,
        "ci": None,
        "p": None,
        "clusters": 0,
    }
    if common and seeds:
        (first, tiles), (second, others) = sides
        clusters = joined_clusters(tiles, others)
        drawn = Resampling.of([clusters[tile.record.id] for tile in tiles], first[0, :, :, 2])
        renamed = drawn.on([clusters[tile.record.id] for tile in others])
        draws = [
            mean_of_present(some.scores(n)[0], axis=1) for some, n in ((renamed, second), (drawn, first))
        ]
        _, interval, p = compare((estimates[1], estimates[0]), (draws[0], draws[1]), drawn.clusters)
        row |= {"ci": None if interval is None else list(interval), "p": p, "clusters": drawn.clusters}
    return row


def joined_clusters(tiles: Sequence[Tile], others: Sequence[Tile]) -> dict[str, str]:
    """Return what each image is resampled with where two studies tell their patients apart differently.

    Images that either study has in one cluster are in one. Both are of the same images.
    """
    named = [
        dict(zip((tile.record.id for tile in some), clusters_of(some)[0], strict=True))
        for some in (tiles, others)
    ]
    joined = dict(named[0])
    for cluster in dict.fromkeys(named[1].values()):
        together = {joined[id] for id, name in named[1].items() if name == cluster}
        joined |= {id: min(together) for id, name in joined.items() if name in together}
    return joined


def _tested(work: Workspace, result: Finished, common: Sequence[str]) -> tuple[Counts, list[Tile]]:
    """Return the counts (seeds, tiles, C, 3) of the test tiles of the images in ``common`` (all, where none is)."""
    tiles = work.tiles["test"]
    kept = [index for index, tile in enumerate(tiles) if not common or tile.record.id in common]
    return result.test_counts[:, kept], [tiles[index] for index in kept]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
