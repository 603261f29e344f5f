"""What is kept: grids of one form, one per view of a tile, in folders named after what made them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from store.grids import GridReader, GridSpec, GridStore, ShardTask, StoreStatus, ViewKey, ViewRow
from store.verify import verify

if TYPE_CHECKING:
    import xarray

__all__ = [
    "GridReader",
    "GridSpec",
    "GridStore",
    "ShardTask",
    "StoreStatus",
    "ViewKey",
    "ViewRow",
    "open_labelled",
    "verify",
]


def open_labelled(path: Path) -> xarray.Dataset:
    """Return the finished grids of a cache as a labelled data set; see ``store.labelled``."""
    from store.labelled import open_labelled as opened  # xarray and dask take a second to load

    return opened(path)
