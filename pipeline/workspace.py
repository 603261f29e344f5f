"""A study at work: its data, its encoders, and the stores that belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.backbones import Backbones
from pipeline.choosing import Wanted
from pipeline.journal import Journal, journal_of
from pipeline.study import Study
from pipeline.study_data import StudyData
from stages.encoders import AskedDtype, Description, Identified, TokenGrid, weights_at_hand
from stages.tiles.plan import mask_spec, masks_identity
from store import GridSpec, GridStore, ViewKey
from store.errors import NoCache
from store.identity import fingerprint
from store.places.place import Place
from store.rows import Encoding

VIEWS = "views"  # the slug of a study's views store: masks and pixel hashes


@dataclass
class Workspace(StudyData):
    """Everything that follows from a study file, computed on first use and kept.

    ``cache``: folder of the stores; ``runs``: folder of results; ``dtype``: the precision in which encoders are run and
    whose caches are meant, "auto" for whichever there is; ``origin``: the place elsewhere whose caches ``cache`` holds
    copies of, where the study's ``cache.root`` is a URL; ``weights``: by canonical name, those given for this command,
    before the study's. ``base``: the workspace that this one was made from by :meth:`of`.
    """

    study: Study
    cache: Path
    runs: Path
    threads: int
    dtype: AskedDtype = "auto"
    origin: Place | None = None
    weights: Mapping[str, Path] = field(default_factory=dict)
    base: Workspace | None = field(default=None, repr=False)

    @property
    def journal(self) -> Journal:
        """What this process works on of the study, and what failed; one for all variants of it."""
        return journal_of(self.results)

    def of(self, study: Study) -> Workspace:
        """Return this workspace for a ``study`` that differs in training and encoding only, sharing what is known."""
        other = copy(self)
        other.study = study
        other.base = self.base or self
        return other

    def keys_of(self, slug: str) -> list[ViewKey]:
        """Return where the study's views are in a store of this slug: in the views store, or in a feature cache."""
        return [view.mask_key if slug == VIEWS else view.key for view in self.views]

    @property
    def _masks_identity(self) -> dict[str, Any]:
        return masks_identity(self.recipe, self.dataset.classes, self.study.data.tile_px)

    @property
    def masks_key(self) -> str:
        """The key of the views store, whether it is at hand or not."""
        return fingerprint(self._masks_identity)

    @property
    def wanted_masks(self) -> Wanted:
        """The views store, as the study asks for it."""
        return Wanted("masks", VIEWS, self._masks_identity)

    def masks_here(self) -> GridStore | None:
        """Return the views store if it is in the cache folder."""
        stores = (store for store in GridStore.beside(self.cache, VIEWS) if store.key == self.masks_key)
        return next(stores, None)

    def masks_store(self, *, create: bool) -> GridStore:
        """Return the views store: masks and pixel hashes of every view. Raises as :meth:`store.GridStore.at` does."""
        return GridStore.at(
            self.cache,
            VIEWS,
            self._masks_identity,
            mask_spec(self.study.data.tile_px),
            {"study": self.study.name},
            create=create,
        )

    def describe(self, encoder: str) -> Description:
        """Return what is known of an encoder, at the study's tile size, without its weights."""
        return self.backbones.describe(encoder)

    @cached_property
    def backbones(self) -> Backbones:
        """What the study says of its encoders."""
        return Backbones(self.study)

    def weights_of(self, encoder: str) -> Path | None:
        """Return the weights given for a canonical name, else the study's; see :meth:`Backbones.weights_of`."""
        return self.weights.get(encoder) or self.backbones.weights_of(encoder)

    def tokens_store(self, encoder: Identified, *, create: bool) -> GridStore:
        """Return the feature cache of a loaded encoder. Raises as :meth:`store.GridStore.at` does."""
        return GridStore.at(
            self.cache,
            slug_of(encoder.name),
            self._tokens_identity(encoder.identity),
            self.tokens_spec(encoder.grid),
            encoder.provenance,
            create=create,
        )

    def wanted_tokens(self, encoder: str, weights: Path | None) -> Wanted:
        """Return the cache that the study asks for of an encoder, as far as it is known without loading it.

        The precision counts where ``dtype`` says one; ``weights`` decide among caches that are otherwise alike.
        Raises :class:`InputError` for an encoder that is not known.
        """
        about = self.describe(encoder)
        known = {} if self.dtype == "auto" else {"compute_dtype": self.dtype}
        return Wanted(
            title=encoder,
            slug=slug_of(about.name),
            identity=self._tokens_identity({**about.identity, **known}),
            weights=None if weights is None else weights_at_hand(encoder, weights),
        )

    def find_tokens(self, encoder: str, weights: Path | None) -> GridStore:
        """Find an encoder's cache without loading it, as someone without the weights has to.

        Raises :class:`InputError` when there is none, naming what differs in the nearest one, and
        :class:`pipeline.choosing.UnclearCache` when the choice is not clear.
        """
        wanted = self.wanted_tokens(encoder, weights)
        return wanted.choose(
            {store.path.name: store for store in GridStore.beside(self.cache, wanted.slug)},
            where=self.cache,
            remedy=f"Extract it: frostgrid extract STUDY --encoder {encoder}.",
        )

    def tokens_here(self, encoder: str, weights: Path | None) -> GridStore | None:
        """Return an encoder's cache if it is in the cache folder, without loading the encoder.

        Raises :class:`pipeline.choosing.UnclearCache` when the choice is not clear.
        """
        try:
            return self.find_tokens(encoder, weights)
        except NoCache:
            return None

    def _tokens_identity(self, encoder: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "encoder": dict(encoder),
            "recipe": self.recipe.identity(),
            "encoding": self.study.cache.encoding,
        }

    def tokens_spec(self, grid: TokenGrid) -> GridSpec:
        """Return what a feature cache of the study keeps of one view: a token grid in the study's encoding."""
        encoding: Encoding = "int8" if self.study.cache.encoding == "int8" else "exact"
        return GridSpec("tokens", (grid.d, grid.h, grid.w), "float16", ("d", "h", "w"), encoding)


def slug_of(encoder: str) -> str:
    """Return an encoder's canonical name as files have it."""
    return encoder.replace("@", "-block")
