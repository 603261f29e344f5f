"""The zarr v3 face of a cache: metadata, chunk names and the two coordinates, as other programs read them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np

from store.rows import GridSpec
from store.shardfile import Compression

SHARD_BYTES = 128 << 20
MIN_SHARD_VIEWS, MAX_SHARD_VIEWS = 8, 512
SHARDS_OF_A_SMALL_PART = 16
MAX_PART_SHARDS = 8192
# What is kept beside each view fills the manifest, of which 1 GiB can be read elsewhere.
MAX_PART_VIEWS = 1 << 20
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC32C = {"name": "crc32c"}


def shard_views(spec: GridSpec, views: int) -> int:
    """Return how many views a shard holds, in a part of ``views`` views.

    The power of two nearest (in ratio) to 128 MiB, so that files are large; lower where that would leave a small
    part with fewer than about 16 shards, so that a kill loses little; always 8 to 512.
    """
    by_size = 1 << round(math.log2(max(1.0, SHARD_BYTES / spec.stored_nbytes)))
    by_loss = 1 << int(math.log2(max(1, views // SHARDS_OF_A_SMALL_PART)))
    return max(MIN_SHARD_VIEWS, min(by_size, by_loss, MAX_SHARD_VIEWS))


def chunk_name(spec: GridSpec, shard: int) -> str:
    """Return the file name of a shard within its array's folder, e.g. ``c.12.0.0.0``."""
    return ".".join(["c", str(shard), *("0" for _ in spec.stored_shape)])


def array_metadata(spec: GridSpec, views: int, slots: int) -> dict[str, Any]:
    """Return the ``zarr.json`` of the sharded array (view, *stored shape) with ``slots`` views a shard.

    Its attributes say what the values are that a grid in the int8 form is decoded to.
    """
    codec = Compression.of(spec.content)
    blosc = {
        "name": "blosc",
        "configuration": {
            "typesize": codec.typesize,
            "cname": codec.cname,
            "clevel": codec.clevel,
            "shuffle": "bitshuffle",
            "blocksize": 0,
        },
    }
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [1, *spec.stored_shape],
            "codecs": [_BYTES, blosc, _CRC32C],
            "index_codecs": [_BYTES, _CRC32C],
            "index_location": "end",
        },
    }
    # Another program that meets a hole gets a value no grid holds: NaN, the label for "ignore", or in the int8 form
    # a scale of 255, 255, 255, 255, which is NaN.
    fill = 255 if spec.stored_dtype == "uint8" else "NaN"
    metadata = _array(
        (views, *spec.stored_shape),
        (slots, *spec.stored_shape),
        spec.stored_dtype,
        fill,
        [sharding],
        ("view", *spec.stored_dims),
    )
    if spec.encoding != "exact":
        values = {"shape": list(spec.shape), "dims": list(spec.dims), "dtype": spec.dtype}
        metadata["attributes"] = {"encoding": spec.encoding, "values": values}
    return metadata


def coordinate(values: Sequence[int]) -> dict[str, bytes]:
    """Return the two files of a 1-D int64 coordinate over the views: ``zarr.json`` and its only chunk."""
    data = np.asarray(values, dtype="<i8").tobytes()
    crc = int(google_crc32c.value(data)).to_bytes(4, "little")
    metadata = _array((len(values),), (len(values),), "int64", 0, [_BYTES, _CRC32C], ("view",))
    return {"zarr.json": to_bytes(metadata), "c.0": data + crc}


def group_metadata(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``zarr.json`` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def to_bytes(metadata: Mapping[str, Any]) -> bytes:
    """Return metadata as the content of a ``zarr.json`` file."""
    return json.dumps(metadata, indent=1).encode()


def unreadable(found: Any, spec: GridSpec, views: int, slots: int) -> list[str]:
    """Return the top-level fields in which array metadata differ from the only ones the shard reader reads.

    Free are the attributes and the parameters of blosc, which every chunk states for itself.
    """
    if not isinstance(found, dict):
        return ["zarr_format"]
    left, right = _comparable(found), _comparable(array_metadata(spec, views, slots))
    return sorted(name for name in {*left, *right} if left.get(name) != right.get(name))


def _comparable(metadata: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in json.loads(json.dumps(metadata)).items() if name != "attributes"}
    fields.setdefault("storage_transformers", [])
    try:
        for codec in fields["codecs"][0]["configuration"]["codecs"]:
            if codec["name"] == "blosc":
                codec["configuration"] = {}
    except (KeyError, IndexError, TypeError):
        pass  # of another form altogether, so it differs as it is
    return fields


def _array(
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: str,
    fill: int | str,
    codecs: list[dict[str, Any]],
    dims: tuple[str, ...],
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": {},
        "dimension_names": list(dims),
        "storage_transformers": [],
    }
