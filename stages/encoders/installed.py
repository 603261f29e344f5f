"""What an installed encoder says of itself and gives, checked: a cache is known by it long after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, get_args

import torch

from stages.encoders.base import (
    AskedDtype,
    ComputeDtype,
    Description,
    Encoder,
    Fit,
    Sharing,
    TokenGrid,
    checked_tokens,
    checked_views,
)
from store.errors import InputError
from store.identity import canonical_json

_REMEDY: Final = "The package that brings it has to be corrected; README.md says what is asked of it."


def checked_description(said: object, name: str, *, tile_px: int, where: str) -> Description:
    """Return the description that an installed encoder gave of itself, with name, tile and fit in its identity.

    Raises ``InputError`` with the first thing in it that cannot be: another name than the entry point's, another tile,
    a grid that is none, an identity that is no JSON or calls it otherwise.
    """
    if not isinstance(said, Description):
        raise _fault(name, f"describes itself by a {type(said).__name__}, not a Description", where)
    grid = said.grid
    whole = [("run_px", said.run_px), ("patch", said.patch), ("parameters", said.parameters)]
    if isinstance(grid, TokenGrid):
        whole += [("grid.d", grid.d), ("grid.h", grid.h), ("grid.w", grid.w)]
    wrong = [
        *(["its grid is no TokenGrid"] if not isinstance(grid, TokenGrid) else []),
        *(
            f"its {field} is {found!r}, not {wanted!r}"
            for field, found, wanted in (("name", said.name, name), ("tile_px", said.tile_px, tile_px))
            if found != wanted
        ),
        *([f"its fit is {said.fit!r}"] if said.fit not in get_args(Fit) else []),
        *(
            f"its {field} is {value!r}"
            for field, value in whole
            if type(value) is not int or value < (field != "parameters")
        ),
        *(
            f"its {field} is no text"
            for field in ("title", "family", "licence")
            if not isinstance(getattr(said, field), str)
        ),
        *([f"its share is {said.share!r}"] if said.share not in get_args(Sharing) else []),
        *_identity_faults(said.identity, {"encoder": name, "tile_px": tile_px}),
    ]
    if wrong:
        raise _fault(name, f"cannot be what it says: {'; '.join(wrong)}", where)
    return replace(said, identity={"fit": said.fit, **said.identity, "encoder": name, "tile_px": tile_px})


class InstalledEncoder:
    """An installed encoder behind checks; see :class:`stages.encoders.base.Encoder`.

    Its identity is joined with that of its description; its provenance begins with title, licence and share of it.
    Raises ``InputError`` where the two contradict each other, a part is missing, or it computes in another precision
    than was ``asked`` for.
    """

    def __init__(self, loaded: Encoder, about: Description, asked: AskedDtype, where: str) -> None:
        self._loaded, self._about, self._where = loaded, about, where
        lacking = [
            name
            for name in ("name", "grid", "identity", "provenance", "parameters", "encode")
            if not hasattr(loaded, name)
        ]
        if lacking:
            raise _fault(about.name, f"has no {' and no '.join(lacking)} when it is loaded", where)
        wrong = [
            *(
                f"its {field} is {found!r}, {wanted!r} in its description"
                for field, found, wanted in (
                    ("name", loaded.name, about.name),
                    ("grid", loaded.grid, about.grid),
                    ("parameters", loaded.parameters, about.parameters),
                )
                if found != wanted
            ),
            *_identity_faults(loaded.identity, about.identity),
            *_json_faults("provenance", loaded.provenance),
        ]
        if wrong:
            raise _fault(about.name, f"is not what it says: {'; '.join(wrong)}", where)
        compute = loaded.identity.get("compute_dtype")
        if compute not in get_args(ComputeDtype):
            raise _fault(
                about.name, "does not say in its identity with which compute_dtype it computes", where
            )
        if asked not in ("auto", compute):
            raise InputError(
                f"{about.name} computes in {compute}, not in {asked}",
                where="dtype",
                remedy="Leave the dtype out.",
            )
        self.name, self.grid, self.parameters = about.name, about.grid, about.parameters
        self.identity: Mapping[str, Any] = {**about.identity, **loaded.identity}
        self.provenance: Mapping[str, Any] = {
            "title": about.title,
            "licence": about.licence,
            "share": about.share,
            "source": where,
            "torch": torch.__version__,
            **loaded.provenance,
        }

    def encode(self, views: torch.Tensor) -> torch.Tensor:
        """Encode (B, 3, tile_px, tile_px) uint8 RGB views to (B, d, h, w) float32 tokens.

        Raises ``ValueError`` for views of another shape or dtype, ``InputError`` for tokens of another shape than the
        description's grid, or that are not finite.
        """
        tokens = self._loaded.encode(checked_views(views, self._about.tile_px))
        wanted = (len(views), self.grid.d, self.grid.h, self.grid.w)
        if not isinstance(tokens, torch.Tensor) or tuple(tokens.shape) != wanted:
            found = tuple(tokens.shape) if isinstance(tokens, torch.Tensor) else type(tokens).__name__
            raise _fault(
                self.name, f"gave {found} for a batch of views, not a tensor of {wanted}", self._where
            )
        return checked_tokens(tokens, self.grid, self.name, str(self.identity["compute_dtype"]))


def _identity_faults(identity: object, known: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with an identity: no JSON, or another value than is ``known`` of a field that it has."""
    faults = _json_faults("identity", identity)
    if faults or not isinstance(identity, Mapping):
        return faults
    return [
        f"its identity has {field} = {identity[field]!r}, not {value!r}"
        for field, value in known.items()
        if field in identity and canonical_json(identity[field]) != canonical_json(value)
    ]


def _json_faults(field: str, value: object) -> list[str]:
    if not isinstance(value, Mapping):
        return [f"its {field} is no mapping"]
    try:
        canonical_json(dict(value))
    except (TypeError, ValueError) as error:
        return [f"its {field} cannot be written as JSON ({error})"]
    return []


def _fault(name: str, what: str, where: str) -> InputError:
    return InputError(f"the installed encoder {name!r} {what}", where=where, remedy=_REMEDY)
