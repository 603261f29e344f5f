"""Which cache is meant: by what is known of it without weights, wherever the caches lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from stages.encoders import file_sha256
from store.errors import InputError, NoCache, OtherCache
from store.identity import differences

NAMED_DIFFERENCES = 5


class UnclearCache(InputError):
    """Several caches fit what is wanted, and nothing says which one is meant."""


class Described(Protocol):
    """A cache as far as it has to be known to be chosen."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that changes its grids."""


C = TypeVar("C", bound=Described)


@dataclass(frozen=True)
class Wanted:
    """A cache as a study asks for it.

    ``title`` is what people call it, ``slug`` what its folder begins with, ``identity`` all that is known of it: of
    the encoder what needs no weights. ``weights`` is the file whose sha256 tells apart caches that are otherwise alike.
    """

    title: str
    slug: str
    identity: Mapping[str, Any]
    weights: Path | None = None

    def differences(self, found: Mapping[str, Any]) -> list[str]:
        """Return where the identity of a cache differs from what is known of the wanted one, a text a field."""
        encoder, known = found.get("encoder"), self.identity.get("encoder")
        if isinstance(encoder, Mapping) and isinstance(known, Mapping):
            found = {**found, "encoder": {name: encoder.get(name) for name in known}}
        return [str(difference) for difference in differences(found, self.identity)]

    def choose(self, candidates: Mapping[str, C], *, where: str | Path, remedy: str) -> C:
        """Return the one that fits of the caches there are, by name; ``where`` they lie is for the messages.

        Raises ``OtherCache`` naming what differs in the nearest one, ``NoCache`` ending in ``remedy`` where there is
        none at all, :class:`UnclearCache` where several fit.
        """
        fits = {name: one for name, one in candidates.items() if not self.differences(one.identity)}
        if fits and self.weights is not None:
            fits = self._of_the_weights(fits, self.weights, where)
        if len(fits) == 1:
            return next(iter(fits.values()))
        if fits:
            raise UnclearCache(
                f"{len(fits)} caches of {self.title} fit this study, made in "
                f"{' and in '.join(_how(one.identity) for one in fits.values())}",
                where=f"{where}: {', '.join(fits)}",
                remedy="Give --dtype or --weights FILE, or move the ones not wanted to another cache folder.",
            )
        others = [(self.differences(one.identity), name) for name, one in candidates.items()]
        if not others:
            raise NoCache(f"There is no cache of {self.title} for this study", where=where, remedy=remedy)
        fields, name = min(others, key=lambda other: (len(other[0]), other[1]))
        more = len(fields) - NAMED_DIFFERENCES
        raise OtherCache(
            f"There is no cache of {self.title} for this study; the nearest one, {name}, differs in "
            + "; ".join(fields[:NAMED_DIFFERENCES])
            + (f"; and {more} more" if more > 0 else ""),
            where=where,
            remedy=f"Set these fields of the study back to use that cache. {remedy}",
        )

    def _of_the_weights(self, fits: Mapping[str, C], weights: Path, where: str | Path) -> dict[str, C]:
        digest = _sha256(weights, weights.stat().st_size, weights.stat().st_mtime_ns)
        made = {
            name: one
            for name, one in fits.items()
            if one.identity["encoder"].get("weights", digest) == digest
        }
        if not made:
            raise OtherCache(
                f"The cache of {self.title} was made from other weights than {weights} (sha256 {digest[:12]})",
                where=f"{where}: {', '.join(fits)}",
                remedy="Extract with these weights, or leave them out to use what is cached.",
            )
        return made


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, changed: int) -> str:
    """Return the sha256 of a file that is this large and was last changed at this time: weights have gigabytes."""
    return file_sha256(path)


def _how(identity: Mapping[str, Any]) -> str:
    encoder = identity["encoder"]
    return f"{encoder.get('compute_dtype')} from weights {str(encoder.get('weights'))[:12]}"
