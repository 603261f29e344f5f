"""A part: an immutable, ordered table of views and the shards that hold their grids."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, compress, repeat
from pathlib import Path
from typing import Any

from store.documents import decode, encode, read_bytes
from store.durable import put_folder
from store.errors import VerificationError
from store.identity import fingerprint
from store.layout import array_metadata, chunk_name, coordinate, group_metadata, to_bytes, unreadable
from store.records import ShardId, ShardRecord
from store.rows import GridSpec, ViewRow
from store.sizes import file_size, file_sizes
from store.table import RowTable

VERSION = MANIFEST_VERSION = 1
PART_NAME = re.compile(r"part-[0-9a-f]{8}")
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
    rows: RowTable

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

    def shard_name(self, shard: int) -> str:
        """Return the name of a shard's file relative to the folder."""
        return f"{self.spec.name}/{chunk_name(self.spec, shard)}"

    def marker_path(self, shard: int) -> Path:
        """Return the done marker of a shard."""
        return self.done_folder / f"{shard}.json"

    def shard_rows(self, shard: int) -> tuple[ViewRow, ...]:
        """Return the rows a shard holds, in order."""
        return self.rows[shard * self.slots : (shard + 1) * self.slots]

    def shard_views(self, shard: int) -> int:
        """Return how many views a shard holds; the last one may hold fewer than the others."""
        return min(self.slots, len(self.rows) - shard * self.slots)

    def keys_in(self, shards: Container[int]) -> Iterator[tuple[str, int]]:
        """Return (tile, view) of every row in the given shards, in order; each equals the row's ``ViewKey``."""
        chosen = chain.from_iterable(repeat(shard in shards, self.slots) for shard in range(self.shards))
        return compress(self.rows.keys(), chosen)

    def shard_id(self, shard: int) -> ShardId:
        """Return what a shard is called in its marker and its label."""
        return ShardId(self.cache, self.key, shard)

    @property
    def documents(self) -> list[str]:
        """Names, relative to the folder, of the files that a part has from the beginning; ``part.json`` is the last."""
        coordinates = [f"{name}/{file}" for name in ("tile", "aug") for file in ("zarr.json", "c.0")]
        return ["zarr.json", f"{self.spec.name}/zarr.json", *coordinates, "part.json"]

    def contents(self) -> dict[str, bytes]:
        """Return what the ``documents`` hold by their names; all but ``part.json`` made anew. Raises ``OSError``."""
        made = metadata_files(self.spec, self.key, self.rows, self.slots)
        return {**made, "part.json": (self.folder / "part.json").read_bytes()}

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
        found = data and self.marker_record(shard, data)
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
            record = data and self.marker_record(shard, data)
            if record:
                found[shard] = record
        if len(found) < self.shards:
            manifest = self._listed(self.manifest)
        return found if manifest is None else manifest

    def done(self, records: Mapping[int, ShardRecord] | None = None) -> dict[int, ShardRecord]:
        """Return the records of the shards that are finished and whole, of ``records`` if they are at hand."""
        found = self.records() if records is None else records
        sizes = file_sizes(self.array_folder)
        return {
            shard: record
            for shard, record in found.items()
            # A listing may be older than the file, on a network disk; what it says against a shard is looked up.
            if sizes.get(chunk_name(self.spec, shard)) == record.summary.bytes or self.intact(record)
        }

    def present(self) -> dict[int, ShardRecord]:
        """Return the records of the finished shards whose file is there, of whatever size: one listing, no file."""
        try:
            names = {path.name for path in self.array_folder.iterdir()}
        except OSError:
            names = set()
        records = self.records()
        return {shard: record for shard, record in records.items() if chunk_name(self.spec, shard) in names}

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

    def marker_record(self, shard: int, data: bytes) -> ShardRecord | None:
        """Return the record that ``data``, a done marker, holds; ``None`` if it is no intact marker of this shard."""
        views, where = self.shard_views(shard), self.marker_path(shard)
        return ShardRecord.from_marker(data, self.shard_id(shard), views, where)

    def listed_records(self, data: bytes, where: str | Path, *, sealed: bool) -> dict[int, ShardRecord]:
        """Return what ``data``, the part's manifest, lists; of a part that is not ``sealed``, its list of what is kept.

        Raises ``VerificationError`` if it is damaged, of another part or incomplete, ``InputError`` if it is newer.
        """
        body = decode("manifest", MANIFEST_VERSION, data, where, REBUILD)
        if (body.get("cache"), body.get("part")) != (self.cache, self.key):
            raise VerificationError("The manifest is that of another part", where=where, remedy=REBUILD)
        try:
            entries = {int(number): entry for number, entry in body["shards"].items()}
            if sealed and sorted(entries) != list(range(self.shards)):
                raise ValueError("a sealed part lists every shard")
            if not all(0 <= number < self.shards for number in entries):
                raise ValueError("a shard is listed that the part does not have")
            return {
                shard: ShardRecord.from_entry(self.shard_id(shard), self.shard_views(shard), entry)
                for shard, entry in entries.items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VerificationError("The manifest is incomplete", where=where, remedy=REBUILD) from error

    def listed_files(self, data: bytes, where: str | Path) -> dict[str, tuple[int, str]]:
        """Return size and sha256 of every file of the sealed part but its manifest, which ``data`` is.

        Those are the part's own files and no others, so that no name is ever taken from a manifest. Raises
        ``VerificationError`` where it lists others or says otherwise of a shard, and as ``listed_records``.
        """
        records = self.listed_records(data, where, sealed=True)
        body = decode("manifest", MANIFEST_VERSION, data, where, REBUILD)
        try:
            files = {name: (int(e["bytes"]), str(e["sha256"])) for name, e in body["files"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VerificationError("The manifest is incomplete", where=where, remedy=REBUILD) from error
        summaries = {self.shard_name(shard): record.summary for shard, record in records.items()}
        recorded = {name: (summary.bytes, summary.sha256) for name, summary in summaries.items()}
        if files.keys() != {*self.documents, *recorded} or not recorded.items() <= files.items():
            raise VerificationError(
                "The manifest lists other files than the part has", where=where, remedy=REBUILD
            )
        return files

    def _listed(self, path: Path) -> dict[int, ShardRecord] | None:
        data = read_bytes(path)
        return None if data is None else self.listed_records(data, path, sealed=path == self.manifest)


def metadata_files(spec: GridSpec, key: str, rows: RowTable, slots: int) -> dict[str, bytes]:
    """Return what every program reads of a part beside its shards, all of which follows from ``part.json``."""
    attributes = {
        "coordinates": "tile aug",
        "key": key,
        "tiles": [name for _, name in rows.tiles],
        "tile_keys": [tile for tile, _ in rows.tiles],
    }
    return {
        "zarr.json": to_bytes(group_metadata(attributes)),
        f"{spec.name}/zarr.json": to_bytes(array_metadata(spec, len(rows), slots)),
        **{f"tile/{name}": data for name, data in coordinate(rows.tile).items()},
        **{f"aug/{name}": data for name, data in coordinate(rows.view).items()},
    }


def create_part(cache_folder: Path, cache: str, spec: GridSpec, rows: Sequence[ViewRow], slots: int) -> Path:
    """Create the part of exactly these rows, complete with its zarr metadata; keep one that exists."""
    table = RowTable.of(rows)
    key = fingerprint(table.to_json())
    folder = cache_folder / f"part-{key[:8]}"
    described = {"key": key, "cache": cache, "spec": spec.to_json(), "shard_views": slots}
    files = {
        "part.json": encode("part", VERSION, {**described, "rows": table.to_json()}),
        **metadata_files(spec, key, table, slots),
    }
    put_folder(folder, files, ("_work/done", "_work/lease"))
    return folder


def part_folders(cache_folder: Path, besides: Iterable[str] = ()) -> list[Path]:
    """Return the folders of all parts but those of the names ``besides``, in the order in which they are asked."""
    names = {entry.name for entry in os.scandir(cache_folder)}.difference(besides)
    return [cache_folder / name for name in sorted(names) if PART_NAME.fullmatch(name)]


def load_part(folder: Path, cache: str, spec: GridSpec) -> Part:
    """Read a part's table.

    Raises ``VerificationError`` if it is damaged or belongs to another cache, ``InputError`` if it was written
    by a newer version.
    """
    path = folder / "part.json"
    data = read_bytes(path)
    if data is None:
        raise VerificationError("The part has lost its table of views", where=path, remedy=RESTORE)
    return parse_part(folder, data, path, cache, spec)


def parse_part(folder: Path, data: bytes, path: str | Path, cache: str, spec: GridSpec) -> Part:
    """Return the part of ``folder`` that the table of views ``data``, found at ``path``, describes.

    Nothing is looked at in ``folder``; only its name has to be the one the table asks for. Errors as for ``load_part``.
    """
    body = decode("part", VERSION, data, path, RESTORE)
    try:
        rows, found_spec = RowTable.from_json(body["rows"]), GridSpec.from_json(body["spec"])
        part = Part(folder, str(body["cache"]), str(body["key"]), found_spec, int(body["shard_views"]), rows)
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError("The table of views is incomplete", where=path, remedy=RESTORE) from error
    if part.cache != cache or part.spec != spec:
        raise VerificationError(
            f"The part belongs to another cache ({part.cache[:12]})",
            where=path,
            remedy="Move the folder out of this cache; its grids were made by something else.",
        )
    belongs = part.name == f"part-{part.key[:8]}" and _is_key_of(part.key, data, body["rows"])
    if not rows or part.slots < 1 or not belongs:
        raise VerificationError(
            "The folder and its table of views do not belong together", where=path, remedy=RESTORE
        )
    return part


def _is_key_of(key: str, data: bytes, table: Any) -> bool:
    # The table stands in the file as it was hashed, which saves making millions of rows into JSON again.
    start, end = data.find(b'"rows":') + len(b'"rows":'), data.rfind(b',"shard_views":')
    return hashlib.sha256(data[start:end]).hexdigest() == key or fingerprint(table) == key
