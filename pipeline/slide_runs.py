"""A finished run, ready for other images than those of its study: its resolution, its decoder and its encoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.backbones import Backbones
from pipeline.console import Talk
from pipeline.study import Study, validated
from pipeline.whose import weights_text
from pipeline.workspace import Workspace, slug_of
from stages.batching import Batches, batches_for
from stages.decoders import Geometry
from stages.encoders import AskedDtype, Encoder, canonical_name, download_progress
from stages.slides.mapping import Decode
from stages.slides.tokens import EncodedTokens, KeptTokens, Tokens, kept_identity, kept_spec
from stages.tiles.demo import DemoDataset
from stages.tiles.puma import PumaDataset
from stages.training.predict import logits_of, trained_decoder
from stages.training.record import RUN, load_run
from stages.training.settings import TrainSettings
from store import GridStore
from store.errors import IdentityMismatch, InputError
from store.identity import array_sha256, differences, fingerprint

_PRECISIONS = ("float32", "float16", "bfloat16")


class TrainedRun:
    """The run in ``folder``. Raises as ``load_run`` does, and :class:`InputError` for one that cannot be used here."""

    def __init__(self, folder: Path) -> None:
        self.stored = load_run(folder)
        identity = self.stored.identity
        try:
            table, self.reference = identity["study"], str(identity["encoder"])
            self.tokens_key = str(identity["tokens"])
            self.settings = TrainSettings(**identity["settings"])
            geometry = dict(identity["geometry"])
            self.geometry = Geometry(**{**geometry, "grid": tuple(geometry["grid"])})
        except (KeyError, TypeError) as error:
            raise InputError(
                f"the run was made by a version of frostgrid that recorded something else of it ({error})",
                where=folder / RUN,
                remedy="Train it again with this version.",
            ) from error
        self.study: Study = validated(table, folder / RUN)

    @property
    def folder(self) -> Path:
        """Where the run lies."""
        return self.stored.folder

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes, in order."""
        return self.stored.result.classes

    @property
    def tile_px(self) -> int:
        """The side of its tiles."""
        return self.geometry.target_px

    @property
    def patch_px(self) -> float:
        """The side, in tile pixels, of what one token stands for."""
        return self.geometry.frame_px / min(self.geometry.grid)

    @property
    def encoder(self) -> str:
        """Its encoder's canonical name."""
        return canonical_name(self.reference)

    @cached_property
    def fingerprint(self) -> str:
        """What tells this run from every other: its inputs, and the weights it ended with."""
        weights = {name: array_sha256(value.numpy()) for name, value in self.stored.result.weights.items()}
        return fingerprint({"identity": dict(self.stored.identity), "weights": weights})

    def mpp(self, said: float | None) -> float | None:
        """Return µm a pixel of the study's tiles; ``said`` is what the user says of a study that is silent.

        None where nobody says it. Raises :class:`InputError` where both do, and differently.
        """
        known = tile_mpp(self.study)
        if known is not None and said is not None and abs(said - known) > 1e-6 * known:
            raise InputError(
                f"the study says that its tiles have {known:g} µm a pixel, not {said:g}",
                where="--study-mpp",
                remedy="Leave it out.",
            )
        return known if said is None else said

    def decode(self, device: torch.device) -> Decode:
        """Return what turns a token grid into the logits of its pixels."""
        decoder = trained_decoder(self.settings, self.geometry, self.stored.result.weights, device)

        def logits(grid: NDArray[np.float16]) -> NDArray[np.float32]:
            return logits_of(decoder, grid, device)

        return logits

    def precision_of(self, encoder: Mapping[str, Any]) -> str | None:
        """Return in which precision an encoder of this identity has to run to give the tokens that were trained on.

        None where it cannot in any: other weights, another block, another size, another version of the extractor.
        """
        given = encoder.get("compute_dtype")
        for precision in (given, *(other for other in _PRECISIONS if other != given)):
            wanted = {**self._tokens_identity, "encoder": {**encoder, "compute_dtype": precision}}
            if fingerprint(wanted) == self.tokens_key:
                return str(precision)
        return None

    @cached_property
    def _tokens_identity(self) -> dict[str, Any]:
        work = Workspace(self.study, Path(), Path(), 1)
        return dict(work.wanted_tokens(self.reference, None).identity)


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
            found = self._load(precision)  # type: ignore[arg-type]
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


def tile_mpp(study: Study) -> float | None:
    """Return µm a pixel of a study's tiles, None where the study does not say it."""
    data = study.data
    if data.mpp is not None:
        return data.mpp
    known = {"puma": PumaDataset.mpp, "demo": DemoDataset.mpp}.get(data.kind, data.image_mpp)
    return None if known is None else known / (data.scale or 1.0)
