"""How a run looks at images larger than its tiles: through which encoder, and in which windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from pipeline.backbones import Backbones
from pipeline.console import Talk
from pipeline.slide_runs import TrainedRun
from pipeline.whose import weights_text
from pipeline.workspace import slug_of
from stages.batching import Batches, batches_for
from stages.encoders import AskedDtype, Encoder, download_progress
from stages.slides.blending import WindowGrid, stride_of, taper
from stages.slides.mapping import Decode, Mapper
from stages.slides.scaled import ScaledSlide
from stages.slides.tissue import Tissue
from stages.slides.tokens import EncodedTokens, KeptTokens, Tokens, kept_identity, kept_spec
from store import GridStore
from store.errors import IdentityMismatch
from store.identity import differences


class Backbone:
    """The encoder of a run, loaded when the first window needs it, and refused unless it is the one trained on."""

    def __init__(
        self,
        run: TrainedRun,
        talk: Talk,
        *,
        device: torch.device,
        weights: Path | None,
        dtype: AskedDtype,
        batch: int | None,
    ) -> None:
        self._run, self._talk, self._device = run, talk, device
        self._weights, self._dtype, self._batch = weights, dtype, batch

    @property
    def asked(self) -> str:
        """The precision that decides the tokens: the one asked for, else the run's own."""
        return self._dtype

    @cached_property
    def batches(self) -> Batches:
        """The encoder, and how many windows it takes at a time."""
        return batches_for(self.encoder, self._run.tile_px, self._device, self._batch)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder in the precision asked for, else that of the tokens trained on.

        Raises as :func:`stages.encoders.load_encoder`, and :class:`IdentityMismatch` for another encoder.
        """
        found = self._load(self._dtype)
        precision = self._run.precision_of(found.identity)
        if precision is None:
            raise self._other(found)
        used = found.identity.get("compute_dtype")
        if precision != used and self._dtype == "auto":
            found = self._load(precision)
        elif precision != used:
            self._talk.say(f"{found.name}: the run was trained on tokens in {precision}, these are in {used}")
        self._talk.say(f"{found.name} loaded{weights_text(found)}, {found.identity.get('compute_dtype')}")
        return found

    def tokens(self, cache: Path | None) -> Tokens:
        """Return the token grids of windows, kept in a feature store under ``cache`` if that is given.

        A store that holds windows of the very encoder the run was trained on is known without loading it.
        """
        if cache is None:
            return EncodedTokens(lambda: self.batches)
        slug = f"{slug_of(self._run.encoder)}-slides"
        for store in GridStore.beside(cache, slug):
            if self._fits(made := store.identity["encoder"]):
                return KeptTokens(partial(self._same, made), store)
        encoder, geometry = self.encoder, self._run.geometry
        store = GridStore.at(
            cache,
            slug,
            kept_identity(dict(encoder.identity)),
            kept_spec((geometry.width_in, *geometry.grid)),
            encoder.provenance,
            create=True,
        )
        return KeptTokens(lambda: self.batches, store)

    def _fits(self, made: Mapping[str, Any]) -> bool:
        proven = self._run.precision_of(made)
        wanted = proven if self._dtype == "auto" else self._dtype
        return proven is not None and made["compute_dtype"] == wanted

    def _same(self, made: Mapping[str, Any]) -> Batches:
        fields = [str(field) for field in differences(made, self.encoder.identity)]
        if fields:
            raise IdentityMismatch(
                f"The cache of windows was made by another encoder: {'; '.join(fields)}",
                where="--cache",
                remedy="Give another folder with --cache.",
            )
        return self.batches

    def _load(self, dtype: AskedDtype) -> Encoder:
        backbones, reference = Backbones(self._run.study), self._run.reference
        weights = self._weights or backbones.weights_of(self._run.encoder)
        with self._talk.bar(f"Loading {reference}", "bytes") as update, download_progress(update):
            return backbones.load(reference, weights=weights, device=self._device, dtype=dtype)

    def _other(self, encoder: Encoder) -> IdentityMismatch:
        """Say in what the encoder differs from the one trained on, where the run's feature cache is at hand."""
        root = Path(self._run.study.cache.root)
        made = next(
            (s for s in GridStore.beside(root, slug_of(encoder.name)) if s.key == self._run.tokens_key), None
        )
        known = None if made is None else made.identity.get("encoder")
        fields = list(differences(known, encoder.identity)) if isinstance(known, Mapping) else []
        said = f": {'; '.join(map(str, fields))}" if fields else weights_text(encoder).replace(", ", ": ", 1)
        return IdentityMismatch(
            f"{encoder.name} as it is here is not the encoder that the run was trained on{said}",
            where=self._run.folder,
            remedy="Give the weights that the run's feature cache was made from, with --weights; if they are, its "
            "sizes, or frostgrid's own version, differ: extract and train again.",
        )


@dataclass
class Windows:
    """How a run looks at images larger than its tiles: in overlapping windows, each encoded, decoded and blended."""

    run: TrainedRun
    backbone: Backbone
    device: torch.device
    threads: int
    overlap: float = 0.5
    cache: Path | None = None

    def __post_init__(self) -> None:
        self.stride = stride_of(self.run.tile_px, self.overlap)

    @cached_property
    def tokens(self) -> Tokens:
        """Where the token grids of windows come from."""
        return self.backbone.tokens(self.cache)

    @cached_property
    def decode(self) -> Decode:
        """The run's decoder."""
        return self.run.decode(self.device)

    def mapper(self, slide: ScaledSlide, tissue: Tissue, *, probabilities: bool = False) -> Mapper:
        """Return what maps ``slide``."""
        px = self.run.tile_px
        return Mapper(
            slide=slide,
            tissue=tissue,
            grid=WindowGrid(slide.height, slide.width, px, self.stride),
            weights=taper(px, self.run.patch_px / 2),
            classes=len(self.run.classes),
            tokens=self.tokens,
            decode=self.decode,
            probabilities=probabilities,
            threads=self.threads,
        )
