"""A part: an immutable, ordered table of views and the shards that hold their grids."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from store.documents import decode, encode, read_bytes
from store.durable import put_folder
from store.errors import VerificationError
from store.identity import fingerprint
from store.layout import array_metadata, chunk_name, coordinate, group_metadata, to_bytes, unreadable
from store.records import ShardId, ShardRecord
from store.rows import GridSpec, ViewRow

VERSION = MANIFEST_VERSION = 1
_NAME = re.compile(r"part-[0-9a-f]{8}")
RESTORE = (
    "Restore the file from a copy of the cache; without one, delete the part's folder and extract again."
)
REBUILD = "Delete this file and extract again: every shard is checked and, where it is whole, taken over."


@dataclass(frozen=True)
class Part:
    """One part of a cache: where it lies, what it holds, and how many views a full shard has."""

    folder: Path
    cache: str
    key: str
    spec: GridSpec
    slots: int
    rows: tuple[ViewRow, ...]

    @property
    def name(self) -> str:
        """Name of the folder, ``part-<first 8 digits of the key>``."""
        return self.folder.name

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-len(self.rows) // self.slots)

    @property
    def done_folder(self) -> Path:
        """Where the done markers of a part that is not sealed lie."""
        return self.folder / "_work" / "done"

    @property
    def lease_folder(self) -> Path:
        """Where the leases on shards lie."""
        return self.folder / "_work" / "lease"

    @property
    def manifest(self) -> Path:
        """The file that exists if and only if the part is sealed."""
        return self.folder / "manifest.json"

    @property
    def reopened(self) -> Path:
        """What the manifest said of the shards still whole, in a part that was sealed and lost one."""
        return self.folder / "reopened.json"

    @cached_property
    def array_folder(self) -> Path:
        """The folder of the sharded zarr array."""
        return self.folder / self.spec.name

    def shard_path(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.array_folder / chunk_name(self.spec, shard)

    def marker_path(self, shard: int) -> Path:
        """Return the done marker of a shard."""
        return self.done_folder / f"{shard}.json"

    def shard_rows(self, shard: int) -> tuple[ViewRow, ...]:
        """Return the rows a shard holds, in order."""
        return self.rows[shard * self.slots : (shard + 1) * self.slots]

    def shard_id(self, shard: int) -> ShardId:
        """Return what a shard is called in its marker and its label."""
        return ShardId(self.cache, self.key, shard)

    def intact(self, record: ShardRecord) -> bool:
        """Tell whether the file of a finished shard is there with the size that was written."""
        return file_size(self.shard_path(record.id.shard)) == record.summary.bytes

    def sealed(self) -> bool:
        """Tell whether the part is complete and has its manifest."""
        return bool(file_size(self.manifest))

    def record(self, shard: int) -> ShardRecord | None:
        """Return what is recorded of one shard, or ``None`` if it was never finished."""
        manifest = self._listed(self.manifest)
        if manifest is not None:
            return manifest.get(shard)
        data = read_bytes(self.marker_path(shard))
        found = data and self._marker(shard, data)
        if found:
            return found
        # Sealing removes the markers, so one that is not there asks for a second look at the manifest.
        manifest = self._listed(self.manifest)
        return (self._listed(self.reopened) or {} if manifest is None else manifest).get(shard)

    def records(self) -> dict[int, ShardRecord]:
        """Return what is recorded of every finished shard, by its number; see ``intact`` for its file."""
        manifest = self._listed(self.manifest)
        if manifest is not None:
            return manifest
        found = self._listed(self.reopened) or {}
        try:
            names = [path.name for path in self.done_folder.iterdir()]
        except FileNotFoundError:
            names = []
        numbers = (int(name[:-5]) for name in names if re.fullmatch(r"\d+\.json", name))
        for shard in sorted(number for number in numbers if number < self.shards):
            data = read_bytes(self.marker_path(shard))
            record = data and self._marker(shard, data)
            if record:
                found[shard] = record
        if len(found) < self.shards:
            manifest = self._listed(self.manifest)
        return found if manifest is None else manifest

    def done(self) -> dict[int, ShardRecord]:
        """Return the records of the shards that are finished and whole."""
        return {shard: record for shard, record in self.records().items() if self.intact(record)}

    def check_layout(self) -> None:
        """Raise ``VerificationError`` unless the zarr metadata are those the shard reader is made for."""
        path = self.array_folder / "zarr.json"
        try:
            found = json.loads(read_bytes(path) or b"null")
        except ValueError:
            found = None
        fields = unreadable(found, self.spec, len(self.rows), self.slots)
        if fields:
            raise VerificationError(
                f"The array is not of the form this reader decodes; it differs in {', '.join(fields)}",
                where=path,
                remedy=RESTORE,
            )

    def _marker(self, shard: int, data: bytes) -> ShardRecord | None:
        views = len(self.shard_rows(shard))
        return ShardRecord.from_marker(data, self.shard_id(shard), views, self.marker_path(shard))

    def _listed(self, path: Path) -> dict[int, ShardRecord] | None:
        data = read_bytes(path)
        if data is None:
            return None
        body = decode("manifest", MANIFEST_VERSION, data, path, REBUILD)
        if (body.get("cache"), body.get("part")) != (self.cache, self.key):
            raise VerificationError("The manifest is that of another part", where=path, remedy=REBUILD)
        try:
            entries = {int(number): entry for number, entry in body["shards"].items()}
            if path == self.manifest and sorted(entries) != list(range(self.shards)):
                raise ValueError("a sealed part lists every shard")
            return {
                shard: ShardRecord.from_entry(self.shard_id(shard), len(self.shard_rows(shard)), entry)
                for shard, entry in entries.items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VerificationError("The manifest is incomplete", where=path, remedy=REBUILD) from error


def file_size(path: Path) -> int | None:
    """Return the size of a file in bytes, or ``None`` where there is no plain file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def create_part(cache_folder: Path, cache: str, spec: GridSpec, rows: Sequence[ViewRow], slots: int) -> Path:
    """Create the part of exactly these rows, complete with its zarr metadata; keep one that exists."""
    tiles: dict[tuple[str, str], int] = {}
    numbers = [tiles.setdefault((row.tile, row.name), len(tiles)) for row in rows]
    table = {
        "tiles": [{"tile": tile, "name": name} for tile, name in tiles],
        "tile": numbers,
        "view": [row.view for row in rows],
        "pixels": [row.pixels for row in rows],
    }
    key = fingerprint(table)
    folder = cache_folder / f"part-{key[:8]}"
    attributes = {
        "coordinates": "tile aug",
        "key": key,
        "tiles": [name for _, name in tiles],
        "tile_keys": [tile for tile, _ in tiles],
    }
    document = {"key": key, "cache": cache, "spec": spec.to_json(), "shard_views": slots, "rows": table}
    files = {
        "part.json": encode("part", VERSION, document),
        "zarr.json": to_bytes(group_metadata(attributes)),
        f"{spec.name}/zarr.json": to_bytes(array_metadata(spec, len(rows), slots)),
        **{f"tile/{name}": data for name, data in coordinate(numbers).items()},
        **{f"aug/{name}": data for name, data in coordinate([row.view for row in rows]).items()},
    }
    put_folder(folder, files, ("_work/done", "_work/lease"))
    return folder


def part_folders(cache_folder: Path) -> list[Path]:
    """Return the folders of all parts, in the order in which parts are asked for a view."""
    names = sorted(path.name for path in cache_folder.iterdir() if _NAME.fullmatch(path.name))
    return [cache_folder / name for name in names]


def load_part(folder: Path, cache: str, spec: GridSpec) -> Part:
    """Read a part's table.

    Raises ``VerificationError`` if it is damaged or belongs to another cache, ``InputError`` if it was written
    by a newer version.
    """
    path = folder / "part.json"
    data = read_bytes(path)
    if data is None:
        raise VerificationError("The part has lost its table of views", where=path, remedy=RESTORE)
    body = decode("part", VERSION, data, path, RESTORE)
    try:
        table, found_spec = body["rows"], GridSpec.from_json(body["spec"])
        tiles = [(str(entry["tile"]), str(entry["name"])) for entry in table["tiles"]]
        columns = zip(table["tile"], table["view"], table["pixels"], strict=True)
        rows = tuple(
            ViewRow(tiles[at][0], int(view), tiles[at][1], str(pixels)) for at, view, pixels in columns
        )
        part = Part(folder, str(body["cache"]), str(body["key"]), found_spec, int(body["shard_views"]), rows)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise VerificationError("The table of views is incomplete", where=path, remedy=RESTORE) from error
    if part.cache != cache or part.spec != spec:
        raise VerificationError(
            f"The part belongs to another cache ({part.cache[:12]})",
            where=path,
            remedy="Move the folder out of this cache; its grids were made by something else.",
        )
    if not rows or part.slots < 1 or part.key != fingerprint(table) or part.name != f"part-{part.key[:8]}":
        raise VerificationError(
            "The folder and its table of views do not belong together", where=path, remedy=RESTORE
        )
    return part
