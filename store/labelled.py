"""A cache as a labelled xarray data set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import dask.array as da
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray

from store.errors import VerificationError
from store.grids import GridReader, GridStore, ViewKey
from store.identity import canonical_json


def open_labelled(path: Path) -> xr.Dataset:
    """Return all finished grids of the cache in ``path`` as one lazy data set (view, *dims).

    Coordinates along ``view``: ``view`` itself is the view's index (0 = unaugmented), ``tile`` the tile's name and
    ``tile_key`` the key of its content. One dask chunk is one shard. Every block is read by ``GridReader``, so that
    a damaged shard raises ``DamagedGrid`` where zarr would give NaN; a finished shard that is lost or cut raises it
    here and now. Further errors as for ``GridStore.open``.
    """
    store = GridStore.open(path)
    reader = store.reader()
    for key in reader.damaged():
        reader.read(key)
    shape, dtype = store.spec.shape, store.spec.dtype
    blocks = []
    for _, group in groupby(reader.views(), key=reader.shard_of):
        keys = tuple(group)
        block = delayed(_read_block, pure=False, traverse=False)(path, delayed(keys, traverse=False))
        blocks.append(
            da.from_delayed(block, (len(keys), *shape), dtype=dtype)  # type: ignore[no-untyped-call]
        )
    if not blocks:
        blocks.append(da.zeros((0, *shape), dtype=dtype))
    joined = da.concatenate(blocks)  # type: ignore[no-untyped-call]
    rows = [reader.row(key) for key in reader.views()]
    return xr.Dataset(
        {store.spec.name: (("view", *store.spec.dims), joined)},
        coords={
            "view": ("view", [row.view for row in rows]),
            "tile": ("view", [row.name for row in rows]),
            "tile_key": ("view", [row.tile for row in rows]),
        },
        attrs={"slug": store.slug, "key": store.key, "identity": canonical_json(store.identity).decode()},
    )


def _read_block(path: Path, keys: Sequence[ViewKey]) -> NDArray[Any]:
    """Read a block in whichever process dask runs it; the graph carries a path and keys, never a reader."""
    try:
        return _reader(path).read_many(keys, threads=1)
    except VerificationError:
        _reader.cache_clear()  # the kept reader may be older than a repair
        return _reader(path).read_many(keys, threads=1)


@lru_cache(maxsize=8)
def _reader(path: Path) -> GridReader:
    return GridStore.open(path).reader()
