"""A cache of a million views, as documents and empty files: how long it takes to open it and to list it."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench.harness import Result, Setting, benchmark
from bench.tokens import SPEC
from store import GridStore, ViewRow
from store.parts import load_part, part_folders
from store.places import open_place
from store.records import ShardRecord
from store.sealing import listing
from store.shardfile import ShardSummary
from store.sharing import offers

VIEWS, SMALL_VIEWS = 1_000_000, 3_000
_VIEWS_A_TILE = 50
_BYTES_A_VIEW = 3_200_000
_LIMIT_S = 5.0


@benchmark("store/million-views-open")
def million_views_open(setting: Setting) -> Result:
    """From nothing to a reader that knows where every view is."""
    return _timed(
        setting, "GridStore.open and a reader of all grids", lambda path: len(GridStore.open(path).reader())
    )


@benchmark("store/million-views-list")
def million_views_list(setting: Setting) -> Result:
    """From nothing to what ``frostgrid cache ls`` shows of a cache: its documents and one listing."""

    def listed(path: Path) -> int:
        found, _ = offers(open_place(path.parent))
        return sum(offer.status.views_done for offer in found)

    return _timed(
        setting, "the listing of the folder the cache lies in, for which no shard is opened", listed
    )


def _timed(setting: Setting, what: str, found: Callable[[Path], int]) -> Result:
    views = SMALL_VIEWS if setting.small else VIEWS
    (path,) = Path(_layout(setting.folder, views).name).glob("bench-*")
    seconds = []
    for _ in range(min(setting.rounds, 5)):
        gc.collect()
        start = time.perf_counter()
        if found(path) != views:
            raise RuntimeError(f"{path} should have {views} views")
        seconds.append(time.perf_counter() - start)
    shards = sum(1 for _ in path.glob(f"part-*/{SPEC.name}/c.*"))
    return Result(
        _LIMIT_S / median(seconds),
        f"{what}: seconds for {views} views of 4.2 MB in {shards} shards (sealed documents as a writer leaves them, "
        f"empty files of the right length), against the {_LIMIT_S:.0f} s that are allowed",
        ">= 1",
        {"ours_s": median(seconds), "reference_s": _LIMIT_S, "seconds": sorted(seconds)},
    )


@cache
def _layout(folder: Path, views: int) -> TemporaryDirectory[str]:
    """Make the cache, less its grids; it goes with the process."""
    made = TemporaryDirectory(dir=folder)
    store = GridStore.at(Path(made.name), "bench", {"benchmark": "layout"}, SPEC, {}, create=True)
    tiles = [_sha256(f"tile {number}") for number in range(-(-views // _VIEWS_A_TILE))]
    rows = [
        ViewRow(tiles[at % len(tiles)], at // len(tiles), f"tile_{at % len(tiles)}", _sha256(f"view {at}"))
        for at in range(views)
    ]
    store.plan(rows)
    for part_folder in part_folders(store.path):
        part = load_part(part_folder, store.key, SPEC)
        records = {}
        for shard in range(part.shards):
            count = part.shard_views(shard)
            size = count * _BYTES_A_VIEW
            with part.shard_path(shard).open("wb") as file:
                file.truncate(size)
            summary = ShardSummary(size, _sha256(f"{part.name} {shard}"), shard, tuple(range(count)))
            records[shard] = ShardRecord(part.shard_id(shard), summary, (None,) * count)
        documents = {name: (part.folder / name).read_bytes() for name in part.documents}
        part.manifest.write_bytes(listing(part, records, documents))
    return made


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
