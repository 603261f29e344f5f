"""A finished run, ready for other images than those of its study: its resolution, its decoder, its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.study import Study, validated
from pipeline.workspace import Workspace
from stages.decoders import Geometry, decoder_names, decoder_source
from stages.encoders import ComputeDtype, canonical_name
from stages.slides.mapping import Decode
from stages.tiles.demo import DemoDataset
from stages.tiles.puma import PumaDataset
from stages.training.predict import logits_of, trained_decoder
from stages.training.record import RUN, load_run
from stages.training.settings import TrainSettings
from store.errors import InputError
from store.identity import array_sha256, fingerprint

_PRECISIONS: tuple[ComputeDtype, ...] = get_args(ComputeDtype)


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
        self._expect_decoder(identity.get("decoder_source"))

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

    def precision_of(self, encoder: Mapping[str, Any]) -> ComputeDtype | None:
        """Return in which precision an encoder of this identity has to run to give the tokens that were trained on.

        None where it cannot in any: other weights, another block, another size, another version of the extractor.
        """
        for precision in _PRECISIONS:
            wanted = {**self._tokens_identity, "encoder": {**encoder, "compute_dtype": precision}}
            if fingerprint(wanted) == self.tokens_key:
                return precision
        return None

    def _expect_decoder(self, trained: str | None) -> None:
        """Raise :class:`InputError` unless the decoder comes from what it came from in training (None: frostgrid)."""
        name, ours = self.settings.decoder, "frostgrid's own"
        if name not in decoder_names():
            found = "not installed"
        elif (source := decoder_source(name)) == trained:
            return
        else:
            found = source or ours
        raise InputError(
            f"the run was trained with the decoder {name} of {trained or ours}, which is {found} here",
            where=self.folder / RUN,
            remedy=f"Install {trained or 'no package with a decoder of this name'}, or train it again.",
        )

    @cached_property
    def _tokens_identity(self) -> dict[str, Any]:
        work = Workspace(self.study, Path(), Path(), 1)
        return dict(work.wanted_tokens(self.reference, None).identity)


def tile_mpp(study: Study) -> float | None:
    """Return µm a pixel of a study's tiles, None where the study does not say it."""
    data = study.data
    if data.mpp is not None:
        return data.mpp
    known = {"puma": PumaDataset.mpp, "demo": DemoDataset.mpp}.get(data.kind, data.image_mpp)
    return None if known is None else known / (data.scale or 1.0)


def required_mpp(run: TrainedRun, said: float | None) -> float:
    """Return µm a pixel of the run's tiles. Raises :class:`InputError` where neither the study nor ``said`` tells."""
    found = run.mpp(said)
    if found is None:
        raise InputError(
            f"the study {run.study.name} does not say how many µm a pixel of its tiles has, and without it nothing "
            "else can be brought to their size",
            where=run.folder,
            remedy="Give --study-mpp: the µm a pixel of its images, divided by its scale "
            f"({run.study.data.scale or 1:g}). In a new study, image_mpp under [data] says it.",
        )
    return found
