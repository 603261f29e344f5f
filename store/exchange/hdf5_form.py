"""Names and texts of the HDF5 form of a cache, for the side that writes it and the side that reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.identity import fingerprint

VERSION = 1
FORMAT = f"frostgrid-hdf5/{VERSION}"

COORDINATES = ("tile_key", "tile", "view", "pixels", "meta", "sha256")
MASK_COORDINATES = ("mask_key", "mask_meta", "mask_sha256")
STORE_ATTRIBUTES = ("slug", "key", "identity", "grid", "provenance")
FILE_ATTRIBUTES = ("format", *STORE_ATTRIBUTES, "encoding", "libraries")
MASK_ATTRIBUTES = (*STORE_ATTRIBUTES, "classes")


def text(value: str) -> np.bytes_:
    """Return a text as the fixed-length bytes of an attribute."""
    return np.bytes_(value.encode())


def texts(values: Sequence[str]) -> NDArray[np.bytes_]:
    """Return texts as an array of bytes of one length, the shorter ones padded with zero bytes."""
    encoded = [value.encode() for value in values]
    return np.array(encoded, dtype=f"S{max(1, *map(len, encoded))}")


def digest(
    attributes: Mapping[str, str],
    mask_attributes: Mapping[str, str] | None,
    coordinates: Mapping[str, NDArray[Any]],
) -> str:
    """Return the sha256 over everything the file says, and through the coordinate ``sha256`` over every grid."""
    sums = {name: hashlib.sha256(np.ascontiguousarray(c).data).hexdigest() for name, c in coordinates.items()}
    return fingerprint([attributes, mask_attributes, sums])
