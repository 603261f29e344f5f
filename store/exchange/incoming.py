"""What an import came to."""

from __future__ import annotations

from dataclasses import dataclass

from store.grids import GridStore


@dataclass(frozen=True)
class Imported:
    """The cache that a file was brought into, the number of ``views`` in the file, and how many of them are new here.

    ``added`` counts views of the cache that it lacked before, ``masks_added`` those of the views store.
    """

    store: GridStore
    views: int
    added: int
    masks_added: int
