"""What a cache says it is (its ``cache.json``): written once, checked when it is read, compared with what is wanted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from store.documents import decode, encode_legibly
from store.errors import IdentityMismatch, NoCache, OtherCache, VerificationError
from store.identity import differences, fingerprint
from store.rows import GridSpec

VERSION = 1
SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,199}")  # that can begin the name of a folder everywhere
RESTORE = "Restore cache.json from a copy of the cache."


@dataclass(frozen=True)
class Description:
    """The ``slug`` of a cache, its ``identity``, the form of its grids, and how, where and with what they were made."""

    slug: str
    identity: dict[str, Any]
    spec: GridSpec
    provenance: dict[str, Any]

    @property
    def key(self) -> str:
        """The fingerprint of the identity."""
        return fingerprint(self.identity)

    @property
    def folder(self) -> str:
        """What the folder of the cache is called."""
        return f"{self.slug}-{self.key[:12]}"

    def written(self) -> bytes:
        """Return the content of ``cache.json``."""
        body = {
            "slug": self.slug,
            "key": self.key,
            "identity": self.identity,
            "grid": self.spec.to_json(),
            "provenance": self.provenance,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return encode_legibly("cache", VERSION, body)

    @classmethod
    def read(cls, data: bytes, file: str | Path) -> Description:
        """Return what ``data``, a ``cache.json`` found at ``file``, says.

        Raises ``InputError`` if it was written by a newer version, ``VerificationError`` if it is damaged.
        """
        document = decode("cache", VERSION, data, file, RESTORE)
        try:
            key, slug, identity = str(document["key"]), str(document["slug"]), dict(document["identity"])
            spec, provenance = GridSpec.from_json(document["grid"]), dict(document["provenance"])
        except (KeyError, TypeError, ValueError) as error:
            raise VerificationError(
                "The description of the cache is incomplete", where=file, remedy=RESTORE
            ) from error
        found = cls(slug, identity, spec, provenance)
        if found.key != key:
            raise VerificationError(
                f"The identity in the file was changed: it gives the key {found.key[:12]}, the file says {key[:12]}",
                where=file,
                remedy=RESTORE,
            )
        return found

    def refuse_other(self, identity: Mapping[str, Any], spec: GridSpec, where: Path) -> None:
        """Raise ``IdentityMismatch`` naming the fields in which the cache at ``where`` is not the one described."""
        stored = {**identity, "grid": spec.to_json()}
        fields = [str(one) for one in differences(stored, {**self.identity, "grid": self.spec.to_json()})]
        if fields:
            raise IdentityMismatch(
                f"The cache was made from something else: {'; '.join(fields)}",
                where=where,
                remedy="Set these fields back to use the cache, or extract with the new ones into another [cache] "
                "root.",
            )


def nothing(
    slug: str, identity: Mapping[str, Any], where: Path, others: Sequence[tuple[Path, Mapping[str, Any]]]
) -> NoCache:
    """Return what to say where the wanted cache is not: in which fields the most similar of the ``others`` differs.

    ``others``: folder and identity of each cache of the same ``slug``.
    """
    if not others:
        return NoCache(f"There is no cache of {slug} here", where=where, remedy="Extract first.")
    different = [(list(differences(other, identity)), folder) for folder, other in others]
    fields, folder = min(different, key=lambda one: (len(one[0]), one[1].name))
    return OtherCache(
        f"There is no cache of {slug} made this way; the nearest one differs in {'; '.join(map(str, fields))}",
        where=folder,
        remedy="Set these fields back to use that cache, or extract with the new ones: that makes a cache beside it.",
    )
