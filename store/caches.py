"""The folder of a cache: found by what it was made from, or made. What is in it is for :mod:`store.grids`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from store.description import RESTORE, SLUG, VERSION, Description, nothing
from store.disk_errors import storage_errors
from store.documents import read_bytes
from store.durable import put_folder
from store.errors import FrostgridError, InputError, NoCache, VerificationError
from store.identity import canonical_json
from store.layout import group_metadata, to_bytes
from store.parts import part_folders
from store.rows import GridSpec
from store.sizes import file_size
from store.sweeping import sweep


@dataclass(frozen=True)
class Cache:
    """A cache: the folder ``<slug>-<first 12 digits of key>`` of immutable parts, all grids of one ``spec``.

    ``key`` is the fingerprint of ``identity``, which says everything that changes a grid besides the view itself;
    ``provenance`` says how, where and with what it was made. It can be pickled, and then names its folder.
    """

    path: Path
    key: str
    slug: str
    identity: dict[str, Any]
    spec: GridSpec
    provenance: dict[str, Any]

    @classmethod
    def at(
        cls,
        root: Path,
        slug: str,
        identity: Mapping[str, Any],
        spec: GridSpec,
        provenance: Mapping[str, Any],
        *,
        create: bool,
    ) -> Self:
        """Open the store of ``identity`` under ``root``; with ``create`` make it where it is not there yet.

        Raises ``OtherCache`` naming the fields if there are only stores of the same slug with another identity,
        ``NoCache`` if there is none at all, ``IdentityMismatch`` if it holds grids of another form, ``StorageError`` if
        it cannot be made.
        """
        if not SLUG.fullmatch(slug):
            raise InputError(
                "The name of a cache has up to 200 letters, digits and . _ @ + -, and starts with a letter or digit",
                where=slug,
                remedy="Choose another name.",
            )
        wanted = Description(slug, json.loads(canonical_json(identity)), spec, dict(provenance))
        path = root / wanted.folder
        if create and file_size(path / "cache.json") is None:
            put_cache(path, slug, wanted.key, wanted.written())
        if not path.is_dir():
            others = [(store.path, store.identity) for store in cls.beside(root, slug)]
            raise nothing(slug, wanted.identity, path, others)
        store = cls.open(path)
        wanted.refuse_other(store.identity, store.spec, path)
        return store

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the store in the folder ``path``.

        Raises ``NoCache`` if there is none, ``InputError`` if it was written by a newer version, ``VerificationError``
        if its description is lost or damaged.
        """
        file = path / "cache.json"
        data = read_bytes(file)
        if data is None and path.is_dir() and part_folders(path):
            raise VerificationError("The cache has lost its description", where=file, remedy=RESTORE)
        if data is None:
            remedy = "Give the folder that holds cache.json, or extract first."
            raise NoCache("There is no cache here", where=path, remedy=remedy)
        return cls.described(path, data, file)

    @classmethod
    def described(cls, path: Path, data: bytes, file: str | Path) -> Self:
        """Return the store in the folder ``path`` that ``data``, a cache.json found at ``file``, describes.

        The folder is not looked at. Errors as for ``open``.
        """
        found = Description.read(data, file)
        return cls(path, found.key, found.slug, found.identity, found.spec, found.provenance)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).open, (self.path,)

    @classmethod
    def beside(cls, root: Path, slug: str) -> list[Self]:
        """Return every readable store of ``slug`` under ``root``, whatever its identity, in the order of their keys."""
        name = re.compile(re.escape(slug) + "-[0-9a-f]{12}")
        stores = []
        if root.is_dir():
            for folder in sorted(entry for entry in root.iterdir() if name.fullmatch(entry.name)):
                with suppress(InputError, VerificationError):
                    stores.append(cls.open(folder))
        return stores

    @classmethod
    def under(cls, root: Path) -> tuple[list[Self], list[FrostgridError]]:
        """Return every readable store in the folder ``root``, by name, and what is wrong with the others."""
        stores: list[Self] = []
        faults: list[FrostgridError] = []
        for file in sorted(root.glob("*/cache.json")):
            if not file.parent.name.endswith(".partial"):
                try:
                    stores.append(cls.open(file.parent))
                except FrostgridError as fault:
                    faults.append(fault)
        return stores, faults


def cache_group(slug: str, key: str) -> bytes:
    """Return the ``zarr.json`` that makes the folder of a cache a zarr group."""
    attributes = {"format": f"frostgrid-cache/{VERSION}", "key": key, "title": slug}
    return to_bytes(group_metadata(attributes))


def put_cache(path: Path, slug: str, key: str, description: bytes) -> None:
    """Make the folder of a cache, with ``description`` as its cache.json, unless it is there already.

    Raises ``InputError`` if the folder around it is a cache itself, ``StorageError``.
    """
    with storage_errors(path):
        around = read_bytes(path.parent / "cache.json")
    if around is not None:
        raise within_a_cache(path.parent)
    files = {"cache.json": description, "zarr.json": cache_group(slug, key)}
    with storage_errors(path):
        put_folder(path, files)
        sweep(path.parent)


def within_a_cache(where: str | Path) -> InputError:
    """Return what to say where a cache is given for the folder of caches that another is to be written to."""
    return InputError(
        "This is a cache, and caches are not written into one another",
        where=where,
        remedy="Give the folder of caches it lies in.",
    )
