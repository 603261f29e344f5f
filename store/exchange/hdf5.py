"""A cache as one HDF5 file, that any HDF5 reader opens, and back; the format is ``frostgrid-hdf5/1``.

Of N views, in the order of the cache:

- ``features`` (N, d, h, w) float16, one chunk a view; ``tile_key``, ``tile`` (its name), ``view`` (its index),
  ``pixels`` (sha256 of the view's pixels), ``meta`` (JSON, or empty) and ``sha256`` (of the grid's bytes), each (N,).
- where a views store was given: ``masks`` (N, H, W) uint8 with ``mask_key``, ``mask_meta`` and ``mask_sha256``.
- attributes of the file: ``format``, ``slug``, ``key``, ``identity``, ``grid``, ``provenance`` (with the licence) and
  ``libraries``, the last four as JSON, and ``encoding``; of ``masks``: the same of the views store, and ``classes``.
- ``digest``: sha256 of the canonical JSON of ``[attributes of the file, attributes of masks or null, {coordinate:
  sha256 of its bytes}]``, so that nothing in the file can change unseen.

Texts are of fixed length, UTF-8, padded with zero bytes. A cache of the int8 form is exported as the float16 values it
is read as, with ``encoding`` "int8". Since int8 made of these is not the same cache bit for bit, such a file is not
imported again: a zip carries the stored bytes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from store.errors import InputError
from store.exchange.beside import Chosen, finished, mask_keys
from store.exchange.hdf5_form import FORMAT, digest, text, texts
from store.exchange.hdf5_reading import Content, opened
from store.exchange.incoming import Imported
from store.exchange.outgoing import CHECKSUMMED, Exported, new_file, new_hdf5, require_space
from store.grids import GridStore
from store.identity import canonical_json
from store.reader import GridReader
from store.rows import ViewRow

Progress = Callable[[int, int], None]  # views done, views to do
WAIT_SECONDS = 2.0  # between looks at shards that another process is writing


def export_hdf5(
    store: GridStore,
    path: Path,
    *,
    masks: GridStore | None = None,
    views: Chosen | None = None,
    compression: Literal["gzip"] | None = None,
    on_progress: Progress | None = None,
) -> Exported:
    """Write the finished views of a feature cache to the new HDF5 file ``path``; see the module for its form.

    ``masks``: the views store, whose masks go into the file beside the features; where it has none of these views the
    file has none, and ``Exported.masks`` is 0. ``views``: only these, each with the key of its mask. ``compression``
    "gzip" (level 1 after a byte shuffle) makes the file about a quarter smaller and slower to read. One view at a time
    is in memory, besides the coordinates.

    Raises ``InputError`` if ``path`` exists, if the cache holds no features, or if a part of the views has no mask;
    ``DamagedGrid`` or ``MissingViews`` if a view cannot be read; ``StorageError`` if the disk does not take the file.
    """
    if store.spec.dtype != "float16":
        raise InputError(
            "Only a feature cache becomes an HDF5 file; this one holds masks",
            where=store.path,
            remedy="Export the feature cache and give this one as its masks, or export it as a zip.",
        )
    reader, rows = finished(store, views)
    sources = [_Source("features", store, reader, rows)]
    if masks is not None:
        beside = masks.reader()
        keys = mask_keys(rows, beside, views)
        sources += [_Source("masks", masks, beside, [beside.row(key) for key in keys])] if keys else []
    if compression is None:
        require_space(path.parent, sum(source.store.spec.nbytes * len(rows) for source in sources))
    total = len(rows) * len(sources)
    with new_file(path) as partial:
        with new_hdf5(partial, CHECKSUMMED) as (file, check_disk):
            written = (row for source in sources for row in source.write(file, compression))
            for done, _ in enumerate(written, 1):
                check_disk()
                if on_progress is not None:
                    on_progress(done, total)
            _label(file, sources)
        size = partial.stat().st_size
    return Exported(path, len(rows), len(rows) * (len(sources) - 1), size)


def import_hdf5(path: Path, root: Path, *, on_progress: Progress | None = None) -> Imported:
    """Store what an HDF5 file holds in caches under ``root`` and return the feature cache, and what was added.

    Where the cache (and the views store, if the file has masks) is there already, what it lacks is added; what it has
    is kept. The form of the file is checked before anything is created, and every view against its sha256 when it is
    read: a shard with a view that is not what was exported is not stored. An import that was stopped goes on where it
    was when it is repeated. Only links, layouts and filters that the export uses are followed.

    Raises ``InputError`` for a file of a newer version, of the int8 form or not of this format, ``VerificationError``
    for one that is damaged or says what cannot be, ``IdentityMismatch`` if the same views were made from other pixels
    in the cache that is there, ``StorageError`` if the disk does not take it.
    """
    with opened(path) as contents:
        total = sum(len(content.rows) for content in contents)
        done = 0
        added = []
        for content in reversed(contents):  # masks first: a feature cache without them is of little use
            store = GridStore.at(
                root, content.slug, content.identity, content.spec, content.provenance, create=True
            )
            added.append(_restore(store, content, _counting(on_progress, done, total)))
            done += len(content.rows)
        return Imported(store, len(contents[0].rows), added[-1], sum(added[:-1]))


class _Source:
    """One store on its way into the file: ``features`` or ``masks``."""

    def __init__(self, name: str, store: GridStore, reader: GridReader, rows: Sequence[ViewRow]) -> None:
        self.name, self.store, self.reader, self.rows = name, store, reader, rows
        self.hashes: list[str] = []

    def write(self, file: h5py.File, compression: str | None) -> Iterator[ViewRow]:
        """Write the grids, yielding each row when its grid is written."""
        spec = self.store.spec
        gzip = {} if compression is None else {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        grids = file.create_dataset(
            self.name,
            (len(self.rows), *spec.shape),
            np.dtype(spec.dtype).newbyteorder("<"),
            chunks=(1, *spec.shape),
            **gzip,
        )
        buffer = spec.empty()
        for number, row in enumerate(self.rows):
            self.reader.read(row.key, buffer)
            little = buffer.astype(grids.dtype, copy=False)
            self.hashes.append(hashlib.sha256(little.data).hexdigest())
            grids[number] = little
            yield row

    def coordinates(self) -> dict[str, Any]:
        """Return the coordinates of this store's views by name, texts as zero-padded bytes."""
        metas = [self.reader.meta(row.key) for row in self.rows]
        columns = {
            "key": [row.tile for row in self.rows],
            "meta": [canonical_json(meta).decode() if meta else "" for meta in metas],
            "sha256": self.hashes,
        }
        if self.name == "masks":
            return {f"mask_{name}": texts(values) for name, values in columns.items()}
        return {
            "tile_key": texts(columns["key"]),
            "tile": texts([row.name for row in self.rows]),
            "view": np.array([row.view for row in self.rows], "<i8"),
            "pixels": texts([row.pixels for row in self.rows]),
            "meta": texts(columns["meta"]),
            "sha256": texts(columns["sha256"]),
        }

    def attributes(self) -> dict[str, str]:
        """Return what is said of this store."""
        said = {
            "slug": self.store.slug,
            "key": self.store.key,
            "identity": canonical_json(self.store.identity).decode(),
            "grid": canonical_json(self.store.spec.to_json()).decode(),
            "provenance": canonical_json(self.store.provenance).decode(),
        }
        if self.name == "masks":
            return {**said, "classes": canonical_json(self.store.identity.get("classes")).decode()}
        libraries = {
            **{name: version(name) for name in ("frostgrid", "h5py", "numpy")},
            "hdf5": h5py.version.hdf5_version,
        }
        return {
            "format": FORMAT,
            **said,
            "encoding": self.store.spec.encoding,
            "libraries": canonical_json(libraries).decode(),
        }


def _label(file: h5py.File, sources: Sequence[_Source]) -> None:
    coordinates = {name: column for source in sources for name, column in source.coordinates().items()}
    for name, column in coordinates.items():
        file.create_dataset(name, data=column)
    said = [source.attributes() for source in sources]
    of_masks = said[1] if len(said) > 1 else None
    for target, attributes in ((file, said[0]), (file.get("masks"), of_masks or {})):
        for name, value in attributes.items():
            target.attrs.create(name, text(value))
    file.attrs.create("digest", text(digest(said[0], of_masks, coordinates)))


def _restore(store: GridStore, content: Content, on_done: Callable[[int], None]) -> int:
    """Write the views that ``store`` lacks and return how many; what another process holds is waited for."""
    written = 0
    number = {row.key: at for at, row in enumerate(content.rows)}
    while tasks := store.plan(content.rows, can_make=lambda row: row.key in number):
        lacking = sum(len(task.rows) for task in tasks)
        on_done(len(content.rows) - lacking)
        wrote = False
        for task in tasks:
            with store.lease(task) as mine:
                if mine:
                    store.write(task, (content.view(number[row.key]) for row in task.rows))
                    wrote = True
                    written += len(task.rows)
                    lacking -= len(task.rows)
                    on_done(len(content.rows) - lacking)
        if not wrote:
            time.sleep(WAIT_SECONDS)
    on_done(len(content.rows))
    return written


def _counting(on_progress: Progress | None, before: int, total: int) -> Callable[[int], None]:
    def count(done: int) -> None:
        if on_progress is not None:
            on_progress(before + max(0, done), total)

    return count
