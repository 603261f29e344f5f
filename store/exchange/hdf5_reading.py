"""Reading an HDF5 file of unknown origin: only the objects, layouts and filters of our own export are touched.

The library follows links into other files, calls filters by number and takes every size from the file. So nothing is
read through it but texts and numbers of fixed size that lie in one piece in this very file; the bytes of a chunk are
fetched as they lie there, and unpacked here, into no more room than a view has.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5t, h5z
from numpy.typing import NDArray

from store.description import SLUG
from store.errors import AccessError, FrostgridError, InputError, VerificationError
from store.exchange.hdf5_form import (
    COORDINATES,
    FILE_ATTRIBUTES,
    MASK_ATTRIBUTES,
    MASK_COORDINATES,
    VERSION,
    digest,
)
from store.identity import fingerprint
from store.rows import GridSpec, ViewRow

MAX_GRID_BYTES = 1 << 30
MAX_TEXT_BYTES = 64 << 20  # of one attribute
MAX_LABEL_BYTES = 1 << 16  # of one view's name or metadata
_SHA = re.compile(r"[0-9a-f]{64}")
_FILTERS: tuple[list[int], ...] = ([], [h5z.FILTER_DEFLATE], [h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE])
_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, zlib.error)
_UNTOUCHED = "nothing was taken from it"
_KEPT = "what was stored of it so far was checked and stays"


class _Fault(Exception):
    """What is wrong with the file, as a phrase."""


class _Grids:
    """The grids of a data set (N, *shape), each one chunk, read and unpacked without the library's filters."""

    def __init__(self, dataset: h5py.Dataset, spec: GridSpec, path: Path, size: int) -> None:
        self.path = path
        self._id, self._spec, self._size = dataset.id, spec, size
        name = dataset.name.lstrip("/")
        if spec.nbytes > MAX_GRID_BYTES:
            raise _Fault(f"one grid of its {name} has {spec.nbytes} bytes, more than any cache is made of")
        little = np.dtype(spec.dtype).newbyteorder("<")
        if dataset.shape[1:] != spec.shape or not _is(dataset, h5t.py_create(little)):
            raise _Fault(f"its {name} are not {spec.dtype} {spec.shape} as its grid says")
        plist = dataset.id.get_create_plist()
        if plist.get_layout() != h5d.CHUNKED or dataset.chunks != (1, *spec.shape):
            raise _Fault(f"its {name} are not stored as one chunk a view")
        self._filters = [plist.get_filter(at)[0] for at in range(plist.get_nfilters())]
        if self._filters not in _FILTERS:
            raise _Fault(f"its {name} pass through filters other than gzip: {self._filters}")

    def read(self, number: int) -> NDArray[Any]:
        """Return one grid, C-contiguous and little-endian; raises ``_Fault`` or what the library raises."""
        offset = (number, *(0 for _ in self._spec.shape))
        found = self._id.get_chunk_info_by_coord(offset)
        longest = self._spec.nbytes + (self._spec.nbytes // 1000 + 1024 if self._filters else 0)
        if found.byte_offset is None or not 0 < found.size <= min(longest, self._size - found.byte_offset):
            raise _Fault("its chunk is missing or leads outside of the file")
        skipped, data = self._id.read_direct_chunk(offset)
        for at, which in reversed(list(enumerate(self._filters))):
            if not skipped >> at & 1:
                data = self._inflated(data) if which == h5z.FILTER_DEFLATE else self._unshuffled(data)
        if len(data) != self._spec.nbytes:
            raise _Fault(f"its chunk holds {len(data)} bytes, not {self._spec.nbytes}")
        return np.frombuffer(data, np.dtype(self._spec.dtype).newbyteorder("<")).reshape(self._spec.shape)

    def _inflated(self, data: bytes) -> bytes:
        return zlib.decompressobj().decompress(data, self._spec.nbytes + 1)

    def _unshuffled(self, data: bytes) -> bytes:
        planes = np.frombuffer(data, np.uint8).reshape(np.dtype(self._spec.dtype).itemsize, -1)
        return planes.T.tobytes()


@dataclass(frozen=True)
class Content:
    """What the file holds of one store: its description, its views, and a way to read each."""

    slug: str
    identity: dict[str, Any]
    spec: GridSpec
    provenance: dict[str, Any]
    rows: tuple[ViewRow, ...]
    metas: tuple[dict[str, Any] | None, ...]
    hashes: tuple[str, ...]
    grids: _Grids

    def view(self, number: int) -> tuple[NDArray[Any], dict[str, Any] | None]:
        """Return grid and metadata of a row; raises ``VerificationError`` if the grid is not what was exported."""
        where = self.grids.path
        try:
            grid = self.grids.read(number)
        except (_Fault, *_DAMAGE) as error:
            raise _damaged(f"the grid of {self.rows[number]} cannot be read: {error}", where) from error
        if hashlib.sha256(grid.data).hexdigest() != self.hashes[number]:
            raise _damaged(
                f"the grid of {self.rows[number]} is not what was exported: its sha256 differs", where
            )
        return grid, self.metas[number]


@contextmanager
def opened(path: Path) -> Iterator[list[Content]]:
    """Open the file, check all of it but the grids, and give the block what it holds: features, then masks if any.

    Raises ``InputError`` where there is no such file, where it is of another format, of a newer version or of the int8
    form, ``AccessError`` where it may not be read, ``VerificationError`` for everything that is not as it was exported.
    """
    try:
        file = h5py.File(path, "r", locking="best-effort")
    except FileNotFoundError as error:
        raise InputError("There is no such file", where=path, remedy="Correct the path.") from error
    except PermissionError as error:
        raise AccessError(
            "The file may not be read with the rights at hand", where=path, remedy="Ask its owner."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise _damaged(f"it is no HDF5 file, or is cut or damaged ({error})", path, _UNTOUCHED) from error
    with file:
        try:
            contents = _contents(file, path)
        except FrostgridError:
            raise
        except (_Fault, *_DAMAGE) as error:
            raise _damaged(str(error), path, _UNTOUCHED) from error
        yield contents


def _contents(file: h5py.File, path: Path) -> list[Content]:
    _check_format(file, path)
    said = _attributes(file, (*FILE_ATTRIBUTES, "digest"))
    found = said.pop("digest")
    with_masks = "masks" in file
    grids = ("features", "masks") if with_masks else ("features",)
    labels = (*COORDINATES, *MASK_COORDINATES) if with_masks else COORDINATES
    if len(file) != len(grids) + len(labels):
        raise _Fault(f"it holds {len(file)} objects, not exactly {', '.join(grids + labels)}")
    datasets = {name: _dataset(file, name) for name in grids + labels}
    size = path.stat().st_size
    views = datasets["features"].shape[0] if datasets["features"].shape else 0
    columns = {name: _coordinate(datasets[name], name, views, size) for name in labels}
    of_masks = _attributes(datasets["masks"], MASK_ATTRIBUTES) if with_masks else None
    if digest(said, of_masks, columns) != found:
        raise _Fault("what it says of its views is not what was exported: the digest differs")
    _check_encoding(said["encoding"], path)
    own = {name: columns[name] for name in COORDINATES}
    contents = [_content(said, own, datasets["features"], path, size)]
    if of_masks is not None:
        beside = {name.removeprefix("mask_"): columns[name] for name in MASK_COORDINATES}
        own = {**own, **beside, "tile_key": beside["key"], "pixels": np.zeros(views, "S1")}
        contents.append(_content(of_masks, own, datasets["masks"], path, size))
    if [content.spec.dtype for content in contents] != ["float16", "uint8"][: len(contents)]:
        raise _Fault("its features are not float16 or its masks not uint8")
    return contents


def _check_format(file: h5py.File, path: Path) -> None:
    name, _, number = (_attributes(file, ("format",))["format"] if "format" in file.attrs else "").partition(
        "/"
    )
    if name != "frostgrid-hdf5" or not number.isdecimal():
        raise InputError(
            "The HDF5 file is no export of a cache",
            where=path,
            remedy="Give a file that was made by `frostgrid cache export`.",
        )
    if int(number) != VERSION:
        raise InputError(
            f"The file is of format frostgrid-hdf5/{int(number)}; this version of frostgrid reads "
            f"frostgrid-hdf5/{VERSION}",
            where=path,
            remedy="Update frostgrid.",
        )


def _check_encoding(encoding: str, path: Path) -> None:
    if encoding != "exact":
        raise InputError(
            f"The file holds the values of a cache of the {encoding} form, from which that cache cannot be made again "
            "bit for bit",
            where=path,
            remedy="Ask for the cache as a zip, or for a place to pull it from: both carry the stored bytes.",
        )


def _attributes(owner: h5py.File | h5py.Dataset, names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        if not h5a.exists(owner.id, name.encode()):
            raise _Fault(f"it does not say its {name}")
        attribute = h5a.open(owner.id, name.encode())
        kind = attribute.get_type()
        if not _fixed_text(kind, MAX_TEXT_BYTES) or attribute.shape != ():
            raise _Fault(f"its {name} is not one text of fixed length")
        value = np.empty((), f"S{kind.get_size()}")
        attribute.read(value)
        found[name] = bytes(value.item()).decode()
    return found


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a data set that lies in this file; links are refused before they are followed."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise _Fault(f"its {name} is missing, or a link that leads elsewhere")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.id.get_create_plist().get_external_count():
        raise _Fault(f"its {name} is no data set in this file")
    return dataset


def _coordinate(dataset: h5py.Dataset, name: str, views: int, size: int) -> NDArray[Any]:
    """Return a coordinate (``views``,), read only if that many bytes of it lie in the file."""
    kind = dataset.id.get_type()
    known = _is(dataset, h5t.STD_I64LE) if name == "view" else _fixed_text(kind, MAX_LABEL_BYTES)
    if not known or dataset.shape != (views,) or views < 1:
        raise _Fault(f"its {name} is not one {'int64' if name == 'view' else 'text of fixed length'} a view")
    needed, offset = views * kind.get_size(), dataset.id.get_offset()
    in_one_piece = dataset.id.get_create_plist().get_layout() == h5d.CONTIGUOUS
    if (
        not in_one_piece
        or dataset.id.get_storage_size() != needed
        or offset is None
        or offset + needed > size
    ):
        raise _Fault(f"its {name} does not lie in one piece in the file")
    return np.asarray(dataset[()])


def _content(
    said: Mapping[str, str], columns: Mapping[str, NDArray[Any]], dataset: h5py.Dataset, path: Path, size: int
) -> Content:
    identity, provenance = json.loads(said["identity"]), json.loads(said["provenance"])
    if not isinstance(identity, dict) or not isinstance(provenance, dict) or not SLUG.fullmatch(said["slug"]):
        raise _Fault("its identity, provenance or slug is not that of a cache")
    if fingerprint(identity) != said["key"]:
        raise _Fault(f"its identity gives the key {fingerprint(identity)[:12]}, it says {said['key'][:12]}")
    spec = GridSpec.from_json(json.loads(said["grid"]))
    tiles, names, pixels, metas, hashes = (
        [value.decode() for value in columns[name].tolist()]
        for name in ("tile_key", "tile", "pixels", "meta", "sha256")
    )
    rows = tuple(
        ViewRow(tile, int(view), name, of)
        for tile, view, name, of in zip(tiles, columns["view"], names, pixels, strict=True)
    )
    for row, found in zip(rows, hashes, strict=True):
        if not (
            _SHA.fullmatch(row.tile) and _SHA.fullmatch(found) and row.view >= 0 and row.name.isprintable()
        ):
            raise _Fault(f"{row.name!r}, view {row.view}, is no view of a tile")
        if row.pixels and not _SHA.fullmatch(row.pixels):
            raise _Fault(f"the pixels of {row} are no sha256")
    if len({row.key for row in rows}) != len(rows):
        raise _Fault("it holds a view twice")
    kept = tuple(json.loads(meta) if meta else None for meta in metas)
    if not all(meta is None or isinstance(meta, dict) for meta in kept):
        raise _Fault("what it keeps beside a view is no mapping")
    grids = _Grids(dataset, spec, path, size)
    return Content(said["slug"], identity, spec, provenance, rows, kept, tuple(hashes), grids)


def _is(dataset: h5py.Dataset, kind: h5t.TypeID) -> bool:
    return bool(dataset.id.get_type().equal(kind))


def _fixed_text(kind: h5t.TypeID, longest: int) -> bool:
    return isinstance(kind, h5t.TypeStringID) and not kind.is_variable_str() and kind.get_size() <= longest


def _damaged(what: str, path: Path, stored: str = _KEPT) -> VerificationError:
    remedy = f"Fetch the file again, or export it anew; {stored}."
    return VerificationError(f"The file cannot be imported: {what}", where=path, remedy=remedy)
