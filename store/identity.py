"""Fingerprints: content is hashed, never paths, so a cache keeps its name wherever it is moved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def canonical_json(value: Any) -> bytes:
    """Serialise ``value`` to the one byte string that every equal value has.

    Keys sorted, no white space, UTF-8, shortest round-trip floats. Raises ``ValueError`` for NaN and infinity and
    ``TypeError`` for anything that JSON has no form for.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def fingerprint(value: Any) -> str:
    """Return the sha256 (64 hex digits) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def array_sha256(array: NDArray[Any]) -> str:
    """Return the sha256 of an array's dtype, shape and C-order content."""
    digest = hashlib.sha256(canonical_json([array.dtype.str, list(array.shape)]))
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Difference:
    """One field that two identities do not share; a side that lacks it holds ``None``."""

    field: str
    stored: Any
    wanted: Any

    def __str__(self) -> str:
        return f"{self.field}: stored {self.stored!r}, wanted {self.wanted!r}"


def differences(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> Iterator[Difference]:
    """Yield every leaf field (dotted path) on which two nested mappings differ, in alphabetical order."""
    for name in sorted({*stored, *wanted}):
        left, right = stored.get(name), wanted.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from differences(left, right, f"{prefix}{name}.")
        elif left != right:
            yield Difference(prefix + name, left, right)
