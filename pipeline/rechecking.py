"""Views of a cache encoded again with the real encoder: whether the tokens are what they say they are."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.console import Talk
from pipeline.workspace import Workspace, slug_of
from stages.batching import Batches
from stages.encoders import Encoder, canonical_name, download_progress, usable_device
from stages.recheck import Rechecked, Tolerance, recheck, sample, tolerance_of
from store import GridStore
from store.errors import IdentityMismatch, InputError
from store.identity import differences


def reference_of(work: Workspace, store: GridStore) -> str:
    """Return how the study calls the encoder that a cache was made with.

    Raises ``IdentityMismatch`` naming what differs where the cache is not one of the study's.
    """
    found: list[list[str]] = []
    for reference in work.study.encoders.names:
        if slug_of(canonical_name(reference)) == store.slug:
            fields = work.wanted_tokens(reference, None).differences(store.identity)
            if not fields:
                return reference
            found.append(fields)
    differs = "it has no such encoder"
    if found:
        nearest = min(found, key=lambda fields: (len(fields), fields))
        differs = f"it differs in {'; '.join(nearest)}"
    raise IdentityMismatch(
        f"The cache is none of the study {work.study.name}: {differs}",
        where=store.path,
        remedy="Give the study that it was made for with --study.",
    )


def recheck_cache(
    work: Workspace, store: GridStore, count: int, talk: Talk, *, weights: Path | None, device: str | None
) -> dict[str, Any]:
    """Encode ``count`` views of the study that ``store`` holds again and compare them with it; as JSON-able values.

    Raises ``IdentityMismatch`` where the cache is not the study's, or was made with other weights than are at hand.
    """
    reference = reference_of(work, store)
    reader = store.reader()
    held = [view for view in work.views if view.key in reader]
    if not held:
        raise InputError(
            f"The cache holds no view of the study {work.study.name}",
            where=store.path,
            remedy="Its images are others than those of the cache: give another study with --study.",
        )
    encoder = _loaded(work, store, reference, talk, weights=weights, device=device)
    chosen = sample(held, count)
    found: list[Rechecked] = []
    with talk.bar(f"Encoding {encoder.name} again", "views") as update:
        for number, one in enumerate(recheck(chosen, work.source, reader, Batches(encoder, 1)), 1):
            found.append(one)
            update(number, len(chosen))
    tolerance = tolerance_of(store.identity)
    return {
        "encoder": encoder.name,
        "tolerance": asdict(tolerance),
        "views": [_row(one, tolerance) for one in found],
    }


def _loaded(
    work: Workspace, store: GridStore, reference: str, talk: Talk, *, weights: Path | None, device: str | None
) -> Encoder:
    name = canonical_name(reference)
    with talk.bar(f"Loading {name}", "bytes") as update, download_progress(update):
        encoder = work.backbones.load(
            reference,
            weights=weights or work.weights_of(name),
            device=usable_device(device),
            dtype=store.identity["encoder"].get("compute_dtype", "auto"),
        )
    fields = [str(field) for field in differences(store.identity["encoder"], encoder.identity)]
    if fields:
        raise IdentityMismatch(
            f"The encoder at hand is another than the one the cache was made with: {'; '.join(fields)}",
            where=store.path,
            remedy="Give the weights that the cache was made from with --weights.",
        )
    return encoder


def _row(one: Rechecked, tolerance: Tolerance) -> dict[str, Any]:
    return {
        "tile": one.planned.tile.name,
        "view": one.planned.view,
        "same": one.within(tolerance),
        "l2": one.l2 if one.pixels else None,
        "cosine": one.cosine if one.pixels else None,
    }


def recheck_faults(found: dict[str, Any]) -> list[str]:
    """Return a sentence for each view that is not what the cache holds."""
    allowed = found["tolerance"]
    return [
        f"tile {row['tile']}, view {row['view']}: encoded again it differs from what is stored (relative L2 "
        f"{row['l2']:.4f}, allowed {allowed['l2']:g}; least cosine {row['cosine']:.5f}, allowed "
        f"{allowed['cosine']:g})."
        if row["l2"] is not None
        else f"tile {row['tile']}, view {row['view']}: drawn here it has other pixels than what was encoded, "
        "so it cannot be compared."
        for row in found["views"]
        if not row["same"]
    ]
