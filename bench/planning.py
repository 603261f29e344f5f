"""What planning takes on the machine that a command is started on: seconds, memory and bytes of documents a view.

No grid is written: the tiles are made up (but for --images), the shards are empty files of the right length. Run it as
``python -m bench.planning --tiles 1000000 --views 1``; ``docs/scale.md`` is made of what it prints.
"""

from __future__ import annotations

import gc
import hashlib
import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import click
from PIL import Image

from bench.tokens import SPEC
from stages.tiles.dataset import ImageRecord
from stages.tiles.demo import DemoDataset
from stages.tiles.folder import FolderDataset
from stages.tiles.plan import PlannedView, mask_rows, mask_spec, planned_views, token_rows
from stages.tiles.tiling import Tile, tiles_of
from stages.tiles.views import Recipe, draw
from store import GridStore, ViewRow
from store.parts import Part, load_part, part_folders
from store.progress import progress, sighted
from store.records import Meta, ShardRecord
from store.sealing import listing
from store.shardfile import ShardSummary

T = TypeVar("T")
_DRAW = asdict(draw(Recipe(), "0" * 64, 1))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--tiles", default=100_000, show_default=True, type=click.IntRange(1))
@click.option("--views", default=1, show_default=True, type=click.IntRange(1), help="Views of each tile.")
@click.option(
    "--images",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Images of 1024 px to read for their tiles, too.",
)
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path), help="Where to work. [default: /tmp]"
)
def main(tiles: int, views: int, images: int, folder: Path | None) -> None:
    """Plan a views store and a feature cache of made-up tiles; print what each step took, a line each."""
    with TemporaryDirectory(dir=folder) as made:
        if images:
            click.echo(json.dumps(read(images, Path(made, "images"))))
        for line in measured(tiles, views, Path(made)):
            click.echo(json.dumps(line))


def read(images: int, folder: Path) -> dict[str, Any]:
    """Return what it takes to know the tiles of so many images of generated tissue: each is decoded and hashed once."""
    tissue = DemoDataset(images, size_px=1024, seed=0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for record in tissue.records():
        Image.fromarray(tissue.read_image(record)).save(folder / "images" / f"{record.id}.png")
        Image.fromarray(tissue.read_mask(record)).save(folder / "masks" / f"{record.id}.png")
    data = FolderDataset(folder, {name: [number] for number, name in enumerate(tissue.classes)})
    start = time.process_time()
    tiles = tiles_of(data, data.records(), px=512, step_of=lambda _: 1.0, tiling="grid", threads=2)
    seconds = time.process_time() - start
    return {"step": "tiles of PNG images", "images": images, "tiles": len(tiles), "cpu_s": round(seconds, 3)}


def measured(tiles: int, views: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield processor seconds, growth of memory and bytes of documents of each step, all of them a view as well."""
    number = tiles * views

    def step(name: str, work: Callable[[], T], **more: Any) -> tuple[T, dict[str, Any]]:
        gc.collect()
        memory, start = _resident(), time.process_time()
        result = work()
        seconds = time.process_time() - start
        grown = _resident() - memory
        line = {
            "step": name,
            "views": number,
            "cpu_s": round(seconds, 3),
            "views_a_s": round(number / seconds),
        }
        return result, {**line, "kept_bytes_a_view": round(grown / number), **more}

    def documents(store: GridStore, name: str) -> dict[str, Any]:
        sizes = [(part / name).stat().st_size for part in part_folders(store.path)]
        return {
            f"{name}_bytes_a_view": round(sum(sizes) / number, 1),
            "parts": len(sizes),
            "largest": max(sizes),
        }

    planned, line = step("views of the study", lambda: planned_views(_tiles(tiles), [], views))
    yield line
    masks = GridStore.at(folder, "views", {"of": "bench"}, mask_spec(512), {}, create=True)
    tasks, line = step("a new views store", lambda: masks.plan(mask_rows(planned)))
    yield {**line, **documents(masks, "part.json"), "shards": len(tasks)}
    del tasks
    _finish(masks, 1_000)
    tasks, line = step("planning it again, when it is done", lambda: masks.plan(mask_rows(planned)))
    yield {**line, **documents(masks, "manifest.json"), "left": len(tasks)}
    reader, line = step("its reader", masks.reader)
    yield line
    rows, line = step("rows of an encoder's cache", lambda: token_rows(planned, reader))
    yield line
    tokens = GridStore.at(folder, "bench", {"of": "bench"}, SPEC, {}, create=True)
    tasks, line = step("a new cache of an encoder", lambda: tokens.plan(rows))
    yield {**line, **documents(tokens, "part.json"), "shards": len(tasks)}
    del tasks
    _finish(tokens, 3_200_000)
    tasks, line = step("planning it again, when it is done", lambda: tokens.plan(rows))
    yield {**line, **documents(tokens, "manifest.json"), "left": len(tasks)}
    del tasks
    yield step("frostgrid status, of the cache", lambda: _status(tokens, planned))[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    yield {
        "step": "all of it",
        "views": number,
        "peak_bytes": peak,
        "peak_bytes_a_view": round(peak / number),
    }


def _status(store: GridStore, planned: list[PlannedView]) -> int:
    parts, _ = sighted(store)
    return progress(parts, {view.key for view in planned}).views


def _tiles(count: int) -> list[Tile]:
    return [
        Tile(
            f"image_{number}",
            ImageRecord(f"image_{number}", Path(f"/data/images/image_{number}.tif"), None),
            (512.0, 512.0),
            1.0,
            512,
            _sha256(f"tile {number}"),
            _sha256(f"mask {number}"),
        )
        for number in range(count)
    ]


def _finish(store: GridStore, bytes_a_view: int) -> None:
    """Give a store the manifests and the files of the length that it has once everything is written."""
    for folder in part_folders(store.path):
        part = load_part(folder, store.key, store.spec)
        records = {shard: _record(part, shard, bytes_a_view) for shard in range(part.shards)}
        documents = {name: (part.folder / name).read_bytes() for name in part.documents}
        part.manifest.write_bytes(listing(part, records, documents))


def _record(part: Part, shard: int, bytes_a_view: int) -> ShardRecord:
    rows = part.shard_rows(shard)
    size = len(rows) * bytes_a_view
    with part.shard_path(shard).open("wb") as file:
        file.truncate(size)
    crcs = tuple(int(_sha256(f"{part.name} {shard} {row.name} {row.view}")[:8], 16) for row in rows)
    summary = ShardSummary(size, _sha256(f"{part.name} {shard}"), crcs[0], crcs)
    return ShardRecord(part.shard_id(shard), summary, tuple(_meta(row, part.spec.name) for row in rows))


def _meta(row: ViewRow, array: str) -> Meta:
    """Return what a views store keeps beside a mask; a feature cache keeps nothing."""
    if array != "masks":
        return None
    place = {"image": row.name, "centre": [512.0, 512.0], "step": 1.0, "px": 512}
    return {"pixels": _sha256(f"pixels {row.name} {row.view}"), "draw": _DRAW, "tile": place}


def _resident() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    main()
