"""What is known of a cache, wherever it lies, from its documents alone; as JSON-able values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from pipeline.sharing import fits
from pipeline.workspace import VIEWS, Workspace
from store.int8 import encoding_error
from store.sharing import Offer, OfferedPart


def listed(offer: Offer, studies: Sequence[Workspace]) -> dict[str, Any]:
    """Return one cache's line in a list; ``fits`` names those of ``studies`` that can use it.

    ``encoder`` is None for a views store. Bytes are those of the finished shards.
    """
    masks = offer.slug == VIEWS
    return {
        "cache": offer.folder,
        "key": offer.key,
        "encoder": None if masks else re.sub(r"-block(\d+)$", r"@\1", offer.slug),
        "grid": list(offer.spec.shape),
        "encoding": str(offer.identity.get("encoding", offer.spec.content)),
        "views_done": offer.status.views_done,
        "views_planned": offer.status.views_planned,
        "bytes": offer.status.bytes,
        "licence": offer.provenance.get("licence"),
        "share": offer.provenance.get("share", "unclear"),
        "fits": [work.study.name for work in studies if fits(work, offer.slug, offer.identity)],
    }


def described(offer: Offer) -> dict[str, Any]:
    """Return everything that is known of one cache; see :func:`listed`, without the studies it fits."""
    line = {name: value for name, value in listed(offer, ()).items() if name != "fits"}
    tiles = dict.fromkeys(
        chain.from_iterable((name for _, name in offered.part.rows.tiles) for offered in offer.parts)
    )
    error = encoding_error(
        meta for offered in offer.parts for shard in offered.whole for meta in offered.records[shard].meta
    )
    return {
        **line,
        "place": offer.place.url,
        "tiles": len(tiles),
        "tile_names": list(tiles),
        "int8_error": None if error is None else error._asdict(),
        "parts": [_part(offered) for offered in offer.parts],
        "identity": offer.identity,
        "provenance": offer.provenance,
        "faults": [str(fault) for fault in offer.faults],
    }


def _part(offered: OfferedPart) -> dict[str, Any]:
    part = offered.part
    return {
        "part": part.name,
        "sealed": offered.sealed,
        "views": len(part.rows),
        "shards": part.shards,
        "shards_done": len(offered.whole),
        "bytes": sum(offered.records[shard].summary.bytes for shard in offered.whole),
    }
