"""Fetching the PUMA training set from Zenodo: checked, resumed, and explained where there is no network."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stages.tiles.fetch import NotReached, RemoteFile, fetch, get_json, require_space
from stages.tiles.puma import DOI, RECORD, ROI_FILE, ROI_FOLDER, TISSUE_FILE, TISSUE_FOLDER
from stages.tiles.unpack import Unpacked, unpack
from store.errors import AccessError, InputError, StorageError

RECEIPT = "frostgrid-puma.json"

Progress = Callable[[str, int, int], None]
"""Told the archive's name, the bytes there are, and the bytes in all."""


@dataclass(frozen=True)
class _Archive:
    """One archive of the record: how its name is recognised, where its files go, and what they are called."""

    usual_name: str
    marks: str
    folder: str
    pattern: re.Pattern[str]


_ARCHIVES = (
    _Archive(f"{ROI_FOLDER}.zip", "tif_rois", ROI_FOLDER, ROI_FILE),
    _Archive(f"{TISSUE_FOLDER}.zip", "geojson_tissue", TISSUE_FOLDER, TISSUE_FILE),
)


@dataclass(frozen=True)
class PumaDownload:
    """What is now under ``root``: files by folder, members of the archives that were left out, and where from.

    ``source``: ``zenodo`` (sizes and md5 compared with the record), ``archives`` (found in ``root``, checked by their
    own CRC only) or ``present`` (everything was there already).
    """

    root: Path
    source: str
    files: dict[str, int]
    left_out: list[str] = field(default_factory=list)


def get_puma(
    root: Path | str, *, base_url: str = "https://zenodo.org", progress: Progress | None = None
) -> PumaDownload:
    """Bring the regions and tissue annotations of PUMA into ``root``, as :class:`PumaDataset` reads them.

    Asks the record (Zenodo 14869398, CC0) for its files, downloads the two archives to ``<name>.part``, resuming
    what an earlier call left, compares size and md5, unpacks only files of the expected names, and removes the
    archives it downloaded. Files that are there with the same content are kept; others are never overwritten.
    Without network, archives that lie in ``root`` under their own names are unpacked.

    Raises ``AccessError`` where Zenodo cannot be reached or refuses, saying what to fetch by hand;
    ``VerificationError`` for wrong bytes; ``InputError`` for a record or an archive that is not as expected;
    ``StorageError`` where the disk has no room or cannot be written.
    """
    root = Path(root)
    done = _receipt(root)
    if done is not None:
        return done
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the folder cannot be made ({error})", where=root, remedy="Choose another."
        ) from error
    try:
        record = get_json(f"{base_url}/api/records/{RECORD}")
    except NotReached as error:
        return _from_archives(root, error)
    except AccessError as error:
        raise _by_hand(root, error.what) from error
    wanted = [_matching(record, archive, base_url) for archive in _ARCHIVES]
    # Unpacked, an archive is at least as large again.
    require_space(root, 2 * sum(file.size for file in wanted) - sum(file.held(root) for file in wanted))
    kept = {file.name for file in wanted if (root / file.name).exists()}
    try:
        paths = [fetch(file, root, progress) for file in wanted]
    except NotReached as error:
        raise _by_hand(root, f"the download broke off and could not be resumed ({error})") from error
    except AccessError as error:
        raise _by_hand(root, error.what) from error
    download = _unpacked(root, paths, source="zenodo")
    for path in paths:
        if path.name not in kept:
            path.unlink()
    return download


def _matching(record: Any, archive: _Archive, base_url: str) -> RemoteFile:
    """Return the one file of the record that is the archive, or say what the record holds instead."""
    files = record.get("files") if isinstance(record, dict) else None
    files = [file for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    names = [str(file.get("key")) for file in files]
    found = [f for f, name in zip(files, names, strict=True) if _is(archive, name)]
    where = f"{base_url}/records/{RECORD}"
    if len(found) != 1:
        raise InputError(
            f"the record has {len(found) or 'no'} files like {archive.usual_name}; it has {', '.join(names) or 'none'}",
            where=where,
            remedy=f"Look at https://doi.org/{DOI} and fetch the archives by hand. {_placing()}",
        )
    name, size, checksum = str(found[0]["key"]), found[0].get("size"), str(found[0].get("checksum"))
    algorithm, _, digest = checksum.partition(":")
    if type(size) is not int or size <= 0 or algorithm != "md5" or len(digest) != 32:
        raise InputError(
            f"the record gives {name} the size {size!r} and the checksum {checksum!r}",
            where=where,
            remedy=f"Fetch the archives by hand from https://doi.org/{DOI}. {_placing()}",
        )
    if Path(name).name != name:
        raise InputError(f"the record names a file {name!r}", where=where, remedy="Do not use this server.")
    return RemoteFile(name, size, digest, f"{base_url}/api/records/{RECORD}/files/{quote(name)}/content")


def _is(archive: _Archive, name: str) -> bool:
    return archive.marks in name.lower() and name.lower().endswith(".zip")


def _from_archives(root: Path, reason: NotReached) -> PumaDownload:
    """Unpack archives that were fetched by hand, or say what to fetch."""
    paths = []
    for archive in _ARCHIVES:
        there = [path for path in sorted(root.iterdir()) if _is(archive, path.name) and path.is_file()]
        if len(there) != 1:
            raise _by_hand(root, f"Zenodo cannot be reached ({reason})") from reason
        paths.append(there[0])
    return _unpacked(root, paths, source="archives")


def _unpacked(root: Path, paths: Sequence[Path], *, source: str) -> PumaDownload:
    results: list[Unpacked] = [
        unpack(path, root / archive.folder, archive.pattern)
        for path, archive in zip(paths, _ARCHIVES, strict=True)
    ]
    files = {archive.folder: len(result.names) for archive, result in zip(_ARCHIVES, results, strict=True)}
    left_out = [name for result in results for name in result.left_out]
    download = PumaDownload(root, source, files, left_out)
    listed = {archive.folder: result.names for archive, result in zip(_ARCHIVES, results, strict=True)}
    content = {"record": RECORD, "doi": DOI, **asdict(download), "root": None, "listed": listed}
    beside = root / f".{RECEIPT}.part"
    beside.write_text(json.dumps(content, indent=2), encoding="utf-8")
    beside.replace(root / RECEIPT)
    return download


def _receipt(root: Path) -> PumaDownload | None:
    """Return what an earlier call brought, if every file of it is still there."""
    path = root / RECEIPT
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        listed = content["listed"]
        complete = all((root / folder / name).is_file() for folder, names in listed.items() for name in names)
        files = {folder: len(names) for folder, names in listed.items()}
        left_out = list(content["left_out"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the receipt of an earlier download is damaged ({error})",
            where=path,
            remedy="Remove it and run again.",
        ) from error
    return PumaDownload(root, "present", files, left_out) if complete else None


def _by_hand(root: Path, reason: str) -> AccessError:
    names = " and ".join(archive.usual_name for archive in _ARCHIVES)
    return AccessError(
        reason,
        where=f"https://zenodo.org/records/{RECORD}",
        remedy=f"Run the command again when online, or fetch {names} by hand from https://doi.org/{DOI}. "
        f"{_placing(root)}",
    )


def _placing(root: Path | None = None) -> str:
    return f"Put both archives, as they are, into {root or 'the data folder'} and run the command again."
