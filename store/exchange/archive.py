"""Caches as one zip file of uncompressed members, which are the very files of their folders."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from store.documents import read_bytes
from store.errors import DamagedGrid, InputError, StorageError, VerificationError
from store.exchange.incoming import Imported
from store.exchange.outgoing import Exported, new_file, require_space
from store.grids import GridStore
from store.parts import Part, load_part, part_folders
from store.places.archive import ZipPlace
from store.sealing import seal
from store.sharing import Offer, OfferedPart, offer_at, pull
from store.sizes import file_size

Progress = Callable[[int, int], None]  # bytes done, bytes to do
_BLOCK = 1 << 20
_AGAIN = "Nothing was taken from it. Fetch the archive again, or export it anew."
_SAME_EVERY_TIME = (1980, 1, 1, 0, 0, 0)  # so that equal caches give equal archives


@dataclass(frozen=True)
class _File:
    """One file on its way into the archive; ``sha256`` where it is recorded what it has to be."""

    name: str
    path: Path
    bytes: int
    sha256: str | None


def export_zip(
    store: GridStore,
    path: Path,
    *,
    beside: Sequence[GridStore] = (),
    on_progress: Progress | None = None,
) -> Exported:
    """Write a cache, and others ``beside`` it (the views store, say), to the new zip file ``path``.

    Its members are the files of the caches' folders as they are, so that any program can unpack it to caches; each is
    compared with the sha256 recorded of it on the way. Equal caches make equal archives.

    Raises ``InputError`` if ``path`` exists or a part is not complete, naming what is missing; ``VerificationError`` if
    a file is not what was written; ``StorageError`` if the disk does not take the archive.
    """
    stores = {each.path.name: each for each in (store, *beside)}
    files = [
        file for name, each in stores.items() for file in _files_of(each, f"{each.slug}-{each.key[:12]}")
    ]
    total = sum(file.bytes for file in files)
    require_space(path.parent, total)
    done = 0
    with new_file(path) as partial:
        with zipfile.ZipFile(partial, "x", zipfile.ZIP_STORED) as archive:
            for file in files:
                for size in _add(archive, file):
                    done += size
                    if on_progress is not None:
                        on_progress(done, total)
        size = partial.stat().st_size
    masks = (each.status().views_done for each in stores.values() if each.spec.dtype == "uint8")
    return Exported(path, store.status().views_done, sum(masks), size)


def import_zip(path: Path, root: Path, *, threads: int = 4, on_progress: Progress | None = None) -> Imported:
    """Copy the caches in a zip file into caches under ``root`` and return the first, the one that was exported.

    With it comes how many views were added to it, and to the others (of masks).

    All of the archive but the content of the shards is checked before anything is written: what :class:`ZipPlace`
    refuses, members that no manifest names, files that are missing or not of the size in the manifest, documents that
    are not what was written, and whether the disk has room. Then it is pulled from as from any place: each shard is
    compared with its sha256 and committed by itself, what is here stays, and a repeated import goes on where it was.

    Raises ``InputError``, ``VerificationError`` or ``StorageError`` before, and as ``store.sharing.pull`` afterwards.
    """
    with ZipPlace(path) as place:
        offers = [_checked(place, folder) for folder in place.caches()]
        require_space(root, sum(_lacking_bytes(offer, root) for offer in offers))
        sizes = [offer.status.bytes for offer in offers]
        added = []
        for number in reversed(range(len(offers))):  # the views store before the features that need it
            progress = _counting(on_progress, sum(sizes[number + 1 :]), sizes[number], sum(sizes))
            before = _views_in(root / offers[number].name)
            copied = pull(offers[number], root, threads=threads, on_progress=progress)
            added.append(_views_in(copied.store.path) - before)
    return Imported(copied.store, offers[0].status.views_done, added[-1], sum(added[:-1]))


def _files_of(store: GridStore, folder: str) -> Iterator[_File]:
    """Yield the files of a complete cache, the manifest of each part after what it lists."""
    parts = [load_part(path, store.key, store.spec) for path in part_folders(store.path)]
    lacking = [words for part in parts if (words := _lacking(part))]
    if lacking or not parts:
        raise InputError(
            f"The cache is not complete: {'; '.join(lacking) or 'it has no part'}",
            where=store.path,
            remedy="Extract the rest first, or export the finished views as HDF5.",
        )
    for name in ("cache.json", "zarr.json"):
        path = store.path / name
        yield _File(f"{folder}/{name}", path, path.stat().st_size, None)
    for part in parts:
        data = read_bytes(part.manifest) or b""
        for name, (size, sha256) in part.listed_files(data, part.manifest).items():
            yield _File(f"{folder}/{part.name}/{name}", part.folder / name, size, sha256)
        digest = hashlib.sha256(data).hexdigest()
        yield _File(f"{folder}/{part.name}/manifest.json", part.manifest, len(data), digest)


def _lacking(part: Part) -> str | None:
    """Return what a part lacks to be complete, in words; one that lacks only its manifest gets it."""
    missing = sorted({*range(part.shards)} - part.done().keys())
    if missing:
        first = part.shard_rows(missing[0])[0]
        return f"{part.name} lacks {len(missing)} of {part.shards} shards, the first with {first}"
    seal(part)
    return None


def _add(archive: zipfile.ZipFile, file: _File) -> Iterator[int]:
    """Copy one file into the archive, yielding the size of each block; raises ``VerificationError``."""
    info = zipfile.ZipInfo(file.name, _SAME_EVERY_TIME)
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    info.file_size = file.bytes
    digest, size = hashlib.sha256(), 0
    with archive.open(info, "w") as member:
        for block in _blocks(file.path):
            size += len(block)
            if size > file.bytes:
                break
            member.write(block)
            digest.update(block)
            yield len(block)
    if size != file.bytes or digest.hexdigest() != (file.sha256 or digest.hexdigest()):
        raise _changed(file.path, "is not what was written")


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield a file of the cache; what keeps it from being read is not to be taken for a fault of the archive's disk."""
    try:
        with path.open("rb", buffering=0) as source:
            while block := source.read(_BLOCK):
                yield block
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise _changed(path, "is gone") from error
    except OSError as error:
        raise StorageError(
            f"The file cannot be read: {error.strerror}",
            where=path,
            remedy="See to its rights and its disk, and repeat the export.",
        ) from error


def _checked(place: ZipPlace, folder: str) -> Offer:
    """Return the cache in ``folder`` of an archive, if it is complete and nothing else is there."""
    offer = offer_at(place, folder)
    if offer.faults:
        raise offer.faults[0]
    if offer.name != folder:
        raise _unfit(f"its folder {folder} holds the cache {offer.name}", place)
    listed = {
        name: entry for offered in offer.parts for name, entry in _listed(place, folder, offered).items()
    }
    wanted = {"cache.json", "zarr.json", *(f"{offered.part.name}/manifest.json" for offered in offer.parts)}
    wanted |= listed.keys()
    documents = {f"{offered.part.name}/{name}" for offered in offer.parts for name in offered.part.documents}
    if extra := sorted(offer.files.keys() - wanted):
        raise _unfit(f"{folder} holds {extra[0]!r}, which no manifest names", place)
    if missing := sorted(wanted - offer.files.keys()):
        raise _unfit(f"{folder} lacks {missing[0]!r}", place)
    for name, (size, sha256) in listed.items():
        if offer.files[name] != size:
            raise _unfit(f"{name!r} has {offer.files[name]} bytes, its manifest says {size}", place)
        if name in documents:
            content = place.read(f"{folder}/{name}") or b""
            if hashlib.sha256(content).hexdigest() != sha256:
                raise _unfit(f"{name!r} is not what its manifest says", place)
    return offer


def _listed(place: ZipPlace, folder: str, offered: OfferedPart) -> dict[str, tuple[int, str]]:
    """Return size and sha256 of every file in the manifest of a part, by the name it has in the cache's folder."""
    part, inner = offered.part, f"{offered.part.name}/manifest.json"
    data = place.read(f"{folder}/{inner}")
    if not offered.sealed or data is None:
        raise _unfit(f"{part.name} has no manifest, so it is not complete", place)
    try:
        found = part.listed_files(data, Path(place.url, folder, inner))
    except VerificationError as fault:
        raise _unfit(fault.what.replace("The manifest", inner, 1), place) from fault
    return {f"{part.name}/{name}": entry for name, entry in found.items()}


def _lacking_bytes(offer: Offer, root: Path) -> int:
    return sum(
        record.summary.bytes
        for offered in offer.parts
        for shard, record in offered.records.items()
        if file_size(root / offer.name / offered.part.name / offered.part.shard_name(shard))
        != record.summary.bytes
    )


def _views_in(folder: Path) -> int:
    return GridStore.open(folder).status().views_done if file_size(folder / "cache.json") else 0


def _counting(on_progress: Progress | None, before: int, size: int, total: int) -> Progress | None:
    """Return a progress callback for one of several caches, in which what is here already counts as done."""
    if on_progress is None:
        return None
    return lambda done, to_do: on_progress(before + size - to_do + done, total)


def _unfit(what: str, place: ZipPlace) -> VerificationError:
    return VerificationError(f"The archive cannot be imported: {what}", where=place.url, remedy=_AGAIN)


def _changed(path: Path, what: str) -> VerificationError:
    return DamagedGrid(
        f"The file {what}",
        where=path,
        remedy="Verify the cache, restore the file from a copy or extract again, and repeat the export.",
    )
