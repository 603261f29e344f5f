"""From finished runs to ``summary.json``: every figure that tables and page show, made from stored counts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.finished import Finished
from pipeline.report.ablations import Ablated, as_json
from pipeline.report.conclusions import answer, notes
from pipeline.report.paper import beside, table_of
from pipeline.report.results import environments_of, stored_runs
from pipeline.workspace import Workspace
from stages.encoders import canonical_name
from stages.evidence import LEVEL, Evidence, Interval, assess
from stages.evidence.words import comparison_sentence
from stages.metrics import (
    Counts,
    Floats,
    held,
    iou,
    mean_dice,
    mean_over_classes,
    per_tile_dice,
    pooled_dice,
    precision,
    puma_image_dice,
    puma_micro_dice,
    recall,
)
from stages.tiles.tiling import Tile
from store.disk_errors import storage_errors
from store.durable import put_replacing


def summarise(
    workspace: Workspace, results: Sequence[Finished], varied: Sequence[Ablated] = ()
) -> dict[str, Any]:
    """Return everything that is known of a study's finished runs, as JSON-able values.

    ``results``: by encoder, the best mean Dice first. Dice is pooled over all test pixels of a class (None where
    prediction and truth both lack it); std is the sample standard deviation over seeds (n − 1), None for one seed; ci
    is the 95 % interval over test images (:mod:`stages.evidence`), None where there can be none. ``evidence``:
    comparisons and what they rest on. ``ablations``: what a sweep varied. ``notes``: everything that is missing or
    cannot be trusted, in sentences.
    """
    tested = [result for result in results if result.runs]
    counted = {result.encoder: result.test_counts for result in tested}
    clusters, unit = clusters_of(workspace.tiles["test"])
    found = assess(counted, clusters, seeds={result.encoder: tuple(result.runs) for result in tested})
    rows = [_row(workspace, result, counted[result.encoder], found) for result in tested]
    rows.sort(key=lambda row: (-(row["mean_dice"]["mean"] or 0.0), row["encoder"]))
    summary: dict[str, Any] = {
        "study": workspace.study.resolved(),
        "classes": list(workspace.dataset.classes),
        "images": {name: len(images) for name, images in workspace.split.parts()},
        "tiles": {name: len(tiles) for name, tiles in workspace.tiles.items()},
        "results": rows,
        "without_runs": [result.encoder for result in results if not result.runs],
        "damaged": [
            {"encoder": result.encoder, "seed": seed, "what": str(error)}
            for result in results
            for seed, error in result.damaged.items()
        ],
        "evidence": _evidence(workspace, found, unit),
        "paper_table": table_of(workspace.study, workspace.dataset.classes),
        "masks": workspace.masks_key,
        "ablations": as_json(varied),
    }
    summary["answer"] = answer(summary)
    summary["notes"] = notes(summary)
    return summary


def write_summary(workspace: Workspace, summary: Mapping[str, Any]) -> None:
    """Write ``summary.json``."""
    path = workspace.results / "summary.json"
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with storage_errors(path):
        put_replacing(path, text.encode())


def clusters_of(tiles: Sequence[Tile]) -> tuple[list[str], str]:
    """Return what each tile is resampled with, and the word for it: its patient where it is known, else its image."""
    images = [f"image {tile.record.id}" for tile in tiles]
    patients = [tile.record.patient for tile in tiles]
    named = [image if who is None else f"patient {who}" for image, who in zip(images, patients, strict=True)]
    if len(set(named)) == len(set(images)):
        return images, "images"
    return named, "groups" if None in patients else "patients"


def _row(workspace: Workspace, result: Finished, counted: Counts, found: Evidence) -> dict[str, Any]:
    classes = workspace.dataset.classes
    about, runs = result.job.about, list(result.runs.values())
    per_class = pooled_dice(counted)
    means = mean_dice(counted)
    dice = {
        name: _spread(per_class[:, index], found.by_class[result.encoder][index])
        for index, name in enumerate(classes)
    }
    average = _spread(means, found.mean[result.encoder])
    rank = found.ranks.get(result.encoder)
    confusion = np.stack([run.result.best_confusions("test") for run in runs]).sum(axis=(0, 1))
    return {
        "encoder": result.encoder,
        "reference": result.job.reference,
        "in_study": result.encoder in map(canonical_name, workspace.study.encoders.names),
        "title": about.title,
        "decoder": result.decoder,
        "encoder_parameters": about.parameters,
        "decoder_parameters": result.decoder_parameters,
        "grid": [about.grid.d, about.grid.h, about.grid.w],
        "patch": about.patch,
        "input_px": about.run_px,
        "layer": about.layer,
        "licence": about.licence,
        "seeds": sorted(result.runs),
        "missing_seeds": sorted({*result.missing, *result.damaged}),
        "dice": dice,
        "mean_dice": average,
        "by_seed": dict(zip(map(str, result.runs), _numbers(means), strict=True)),
        "metrics": _metrics(counted, classes),
        "confusion": confusion.tolist(),
        "confusion_shares": [_numbers(shares) for shares in _shares(confusion)],
        "rank": None
        if rank is None
        else {
            "observed": rank.observed,
            "first": rank.first,
            "top3": rank.top3,
            "interval": list(rank.interval),
            "shares": list(rank.shares),
        },
        "cost": {
            "bytes_a_view": about.bytes_a_view,
            "views": len(workspace.views),
            "gflop": workspace.backbones.flop(result.job.reference) / 1e9 or None,
            "train_seconds": float(np.mean([run.result.seconds["total"] for run in runs])),
        },
        "paper": beside(
            table_of(workspace.study, classes),
            result.encoder,
            {**{name: dice[name]["mean"] for name in classes}, "average": average["mean"]},
        ),
        "runs": stored_runs(workspace, result),
        "tokens": runs[0].identity["tokens"],
        "environments": environments_of(result),
    }


def _metrics(counted: Counts, classes: Sequence[str]) -> dict[str, Any]:
    """The other scores, mean and std over seeds: by class, and over classes as ``mean``."""
    of_truth = held(counted)
    every = np.ones_like(of_truth)
    by_class = {
        "tile_dice": (per_tile_dice(counted), of_truth),
        "iou": (iou(counted), of_truth),
        "precision": (precision(counted), of_truth),
        "recall": (recall(counted), of_truth),
        "puma_micro": (puma_micro_dice(counted), every),
        "puma_image": (puma_image_dice(counted).mean(axis=-2), every),
    }
    return {
        name: {
            "mean": _spread(mean_over_classes(values, averaged)),
            "by_class": {title: _spread(values[:, index]) for index, title in enumerate(classes)},
        }
        for name, (values, averaged) in by_class.items()
    }


def _evidence(workspace: Workspace, found: Evidence, unit: str) -> dict[str, Any]:
    images, tests = len(workspace.split.test), sum(one.p is not None for one in found.comparisons)
    sample = f"{images} image{'s' if images != 1 else ''}"
    if unit == "patients":
        sample += f" of {found.clusters} patient{'s' if found.clusters != 1 else ''}"
    return {
        "sample": sample,
        "unit": unit,
        "clusters": found.clusters,
        "holding": dict(zip(workspace.dataset.classes, found.holding, strict=True)),
        "resamples": found.resamples,
        "level": LEVEL,
        "seed": found.seed,
        "ranked_seeds": list(found.ranked_seeds),
        "comparisons": [
            {
                "a": one.a,
                "b": one.b,
                "seeds": len(one.seeds),
                "all_seeds": one.all_seeds,
                "difference": _number(one.difference),
                "ci": _interval(one.interval),
                "p": one.p,
                "p_holm": one.p_holm,
                "told_apart": one.told_apart,
                "sentence": comparison_sentence(one, sample, tests),
            }
            for one in found.comparisons
        ],
    }


def _spread(values: Floats, interval: Interval | None = None) -> dict[str, Any]:
    present = values[~np.isnan(values)]
    return {
        "mean": float(present.mean()) if present.size else None,
        "std": float(present.std(ddof=1)) if present.size > 1 else None,
        "ci": _interval(interval),
    }


def _interval(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _numbers(values: Floats) -> list[float | None]:
    return [_number(value) for value in values]


def _shares(confusion: Counts) -> Floats:
    """Divide each row (true class) by its sum; NaN where it is empty."""
    total = confusion.sum(axis=1, keepdims=True)
    return np.where(total > 0, confusion / np.maximum(total, 1), np.nan)
