"""What caches lie at a place: known from their documents and one listing of each, no shard is touched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from store.errors import AccessError, FrostgridError, InputError, NoCache, VerificationError
from store.grids import GridStore
from store.parts import PART_NAME, Part, parse_part
from store.places.place import UNKNOWN, Place
from store.records import ShardRecord
from store.rows import GridSpec, StoreStatus
from store.whereabouts import count_views

FOLDER = re.compile(r"([A-Za-z0-9][A-Za-z0-9._@+-]*)-[0-9a-f]{12}")
MAX_DOCUMENT_BYTES = 1 << 30
_READERS = 16
LOOKS = 3
_AGAIN = "Push the cache again from where it is whole, or remove the folder there."


@dataclass(frozen=True)
class OfferedPart:
    """A part at a place. The folder of ``part`` is its name relative to the place, and is never looked at as a path.

    ``records`` holds every shard with a marker or a line in the manifest, ``whole`` those of them whose object has the
    right size in the listing.
    """

    part: Part
    sealed: bool
    records: Mapping[int, ShardRecord]
    whole: frozenset[int]


@dataclass(frozen=True)
class Offer:
    """One cache at a place, from its documents alone: see ``GridStore`` for the fields of the same name.

    ``name`` is the name its folder has under any root, ``folder`` the one it has here. ``parts`` are those that can be
    read, ``faults`` says what is wrong with the others, ``description`` is its cache.json, ``files`` the listing.
    """

    place: Place
    folder: str
    key: str
    slug: str
    identity: dict[str, Any]
    spec: GridSpec
    provenance: dict[str, Any]
    status: StoreStatus
    parts: tuple[OfferedPart, ...]
    faults: tuple[FrostgridError, ...]
    description: bytes
    files: Mapping[str, int]

    @property
    def name(self) -> str:
        """``<slug>-<first 12 digits of key>``."""
        return f"{self.slug}-{self.key[:12]}"

    def where(self, name: str) -> str:
        """Return a file of the cache, given relative to its folder, as messages show it."""
        return f"{self.place.url}/{self.folder}/{name}"


class Moved(Exception):
    """The cache has changed between its listing and the reading of its documents."""


def offers(place: Place, *, slug: str | None = None) -> tuple[list[Offer], list[FrostgridError]]:
    """Return the caches (of ``slug`` only, if given) at a place, by name, and what is wrong with the others.

    Among the others are folders that hold a cache and are not named after it, where all are asked for. Parts that
    cannot be read are among the second as well as in the ``faults`` of their offer. Raises ``AccessError``,
    ``InputError`` or ``StorageError`` where the place itself cannot be listed, or the connection breaks off.
    """
    found = [(name, FOLDER.fullmatch(name)) for name in place.folders()]
    names = [
        name
        for name, match in found
        if (slug in (None, match[1]) if match else slug is None and _holds_a_cache(place, name))
    ]

    def read(name: str) -> Offer | FrostgridError:
        try:
            offer = offer_at(place, name)
        except (InputError, VerificationError, AccessError) as error:
            return error
        if offer.name == name:
            return offer
        return VerificationError(
            f"The folder is not named after the cache in it, {offer.name}",
            where=offer.where(""),
            remedy=f"Rename it to {offer.name}; until then it is found by nothing but its path.",
        )

    with ThreadPoolExecutor(_READERS) as pool:
        results = list(pool.map(read, names))
    good = [result for result in results if isinstance(result, Offer)]
    bad = [result for result in results if not isinstance(result, Offer)]
    return good, [*bad, *(fault for offer in good for fault in offer.faults)]


def offer_at(place: Place, folder: str) -> Offer:
    """Return the cache in ``folder`` at a place, whatever the folder is called.

    Raises ``NoCache`` if there is none, ``InputError`` if it is newer than this version can read, ``VerificationError``
    if its description is damaged, and what the place raises.
    """
    if PurePosixPath(folder).name != folder or folder == "..":
        raise InputError(
            "This is not the name of a folder", where=folder, remedy="Give one name without a slash."
        )
    for _ in range(LOOKS - 1):
        with suppress(Moved):
            return _read(place, folder)
    try:
        return _read(place, folder)
    except Moved as error:
        what = "The cache keeps changing while it is read"
        raise VerificationError(what, where=f"{place.url}/{folder}", remedy="Try again later.") from error


def _holds_a_cache(place: Place, name: str) -> bool:
    return not name.endswith(".partial") and bool(place.read(f"{name}/cache.json"))


def read_part(
    place: Place, store: GridStore, name: str, files: Mapping[str, int], folder: str
) -> OfferedPart | None:
    """Return the part ``name`` of the cache ``store`` as it lies in ``folder`` at a place, from the listing ``files``.

    ``None`` where it has only just been begun. Raises ``VerificationError`` or ``InputError`` as ``load_part``, and
    :class:`Moved` where the part was sealed since it was listed.
    """
    part_json = f"{name}/part.json"
    if not files.get(part_json):
        prefixes = (f"{name}/manifest.json", f"{name}/_work/done/")
        if any(file.startswith(prefixes) for file in files):
            where = f"{place.url}/{folder}/{part_json}"
            raise VerificationError("The part has lost its table of views", where=where, remedy=_AGAIN)
        return None
    data, where = _document(place, folder, part_json, files)
    part = parse_part(Path(folder, name), data, where, store.key, store.spec)
    records, sealed = _records(place, part, files)
    whole = frozenset(
        shard
        for shard, record in records.items()
        if files.get(f"{name}/{part.shard_name(shard)}") in (record.summary.bytes, UNKNOWN)
    )
    return OfferedPart(part, sealed, records, whole)


def _read(place: Place, folder: str) -> Offer:
    files = place.files(folder)
    where = f"{place.url}/{folder}"
    if not files.get("cache.json"):
        remedy = "Give the place that holds the folders of caches, or push one there."
        raise NoCache("There is no cache here, or not yet", where=where, remedy=remedy)
    description, file = _document(place, folder, "cache.json", files)
    store = GridStore.described(Path(folder), description, file)
    if not FOLDER.fullmatch(f"{store.slug}-{store.key[:12]}"):
        raise VerificationError("The name of the cache is no name of a cache", where=file, remedy=_AGAIN)
    parts: list[OfferedPart] = []
    faults: list[FrostgridError] = []
    for name in sorted({file.partition("/")[0] for file in files if "/" in file}):
        if not PART_NAME.fullmatch(name):
            continue
        try:
            part = read_part(place, store, name, files, folder)
        except (VerificationError, InputError) as error:
            faults.append(error)
        else:
            parts += [part] if part else []
    return Offer(
        place=place,
        folder=folder,
        key=store.key,
        slug=store.slug,
        identity=store.identity,
        spec=store.spec,
        provenance=store.provenance,
        status=_status(parts),
        parts=tuple(parts),
        faults=tuple(faults),
        description=description,
        files=files,
    )


def _records(place: Place, part: Part, files: Mapping[str, int]) -> tuple[dict[int, ShardRecord], bool]:
    """Return what is recorded of the shards of a part, and whether by its manifest."""
    folder = part.folder.parent.as_posix()
    manifest, reopened = (_relative(part, path) for path in (part.manifest, part.reopened))
    if files.get(manifest):
        data, where = _document(place, folder, manifest, files)
        return part.listed_records(data, where, sealed=True), True
    found = {}
    if files.get(reopened):
        data, where = _document(place, folder, reopened, files)
        found = part.listed_records(data, where, sealed=False)
    numbers = [n for n in range(part.shards) if files.get(_relative(part, part.marker_path(n)))]
    with ThreadPoolExecutor(_READERS) as pool:
        contents = list(pool.map(lambda n: place.read(part.marker_path(n).as_posix()), numbers))
    if None in contents:
        raise Moved  # sealing has removed it
    for number, content in zip(numbers, contents, strict=True):
        record = content and part.marker_record(number, content)
        if record:
            found[number] = record
    return found, False


def _document(place: Place, folder: str, name: str, files: Mapping[str, int]) -> tuple[bytes, str]:
    where = f"{place.url}/{folder}/{name}"
    if files[name] > MAX_DOCUMENT_BYTES:
        raise VerificationError(
            f"The file is too large for what it is ({files[name]} bytes)", where=where, remedy=_AGAIN
        )
    data = place.read(f"{folder}/{name}")
    if not data:
        raise Moved
    return data, where


def _relative(part: Part, path: Path) -> str:
    """Return the name of a part's file as it is in the listing of its cache."""
    return path.relative_to(part.folder.parent).as_posix()


def _status(parts: list[OfferedPart]) -> StoreStatus:
    tables = [offered.part for offered in parts]
    return StoreStatus(
        parts=len(parts),
        views_planned=count_views(tables, [range(part.shards) for part in tables]),
        views_done=count_views(tables, [offered.whole for offered in parts]),
        shards_planned=sum(offered.part.shards for offered in parts),
        shards_done=sum(len(offered.whole) for offered in parts),
        bytes=sum(offered.records[shard].summary.bytes for offered in parts for shard in offered.whole),
    )
