"""The encoders of a study: which weights, which revision and which size it says for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch

from pipeline.study import Study
from stages.encoders import (
    AskedDtype,
    Description,
    Encoder,
    canonical_name,
    check_weights,
    describe_encoder,
    encoder_card,
    encoder_flop,
    hub_refusal,
    load_encoder,
    weights_at_hand,
)
from store.errors import FrostgridError, InputError

V = TypeVar("V")


class Backbones:
    """The encoders of a study, by canonical name; what is said of one holds for each of its blocks."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def check(self) -> None:
        """Raise :class:`InputError` for something said of an encoder that is not known, or said twice.

        And for the revision of one that is not on the Hub.
        """
        for table in (self._weights, self._revisions, self._sizes):
            for name, (reference, _) in table.items():
                if table is self._revisions and encoder_card(reference).repo is None:
                    raise InputError(
                        f"{name} is not on the Hugging Face Hub, so that it has no revision",
                        where="encoders.revisions",
                        remedy="Leave it out; encoders.weights names files.",
                    )

    def weights_of(self, name: str) -> Path | None:
        """Return the weights that the study names for an encoder: a file, or a folder that serves no other encoder.

        Raises :class:`InputError` where a folder serves several encoders and holds no weights under this one's name.
        """
        said = _of(self._weights, name)
        if said is None or not said[1].is_dir():
            return None if said is None else said[1]
        reference, folder = said
        users = {
            other.partition("@")[0]
            for other, (_, path) in self._weights.items()
            if path.resolve() == folder.resolve()
        }
        return folder if len(users) < 2 else weights_at_hand(reference, folder, named=True)

    def revision_of(self, name: str) -> str | None:
        """Return the revision on the Hub that the study pins an encoder to."""
        said = _of(self._revisions, name)
        return None if said is None else said[1]

    def describe(self, reference: str) -> Description:
        """Return what is known of an encoder at the study's sizes, without its weights."""
        return describe_encoder(
            reference,
            tile_px=self._study.data.tile_px,
            fit=self._study.encoders.fit,
            input_px=self._input_px_of(reference),
        )

    def flop(self, reference: str) -> int:
        """Return the FLOP of encoding one view of the study."""
        return encoder_flop(
            reference, tile_px=self._study.data.tile_px, input_px=self._input_px_of(reference)
        )

    def weights_at_hand(self, reference: str) -> Path | None:
        """Return the weights file on this machine; see :func:`stages.encoders.weights_at_hand`."""
        name = canonical_name(reference)
        return weights_at_hand(reference, self.weights_of(name), revision=self.revision_of(name))

    def check_weights(self, reference: str, weights: Path | None) -> Path | None:
        """Return the weights file on this machine; see :func:`stages.encoders.check_weights`."""
        return check_weights(reference, weights, revision=self.revision_of(canonical_name(reference)))

    def refusal(self, reference: str, *, timeout: float = 10.0) -> FrostgridError | None:
        """Return what the Hub says against giving the weights; see :func:`stages.encoders.hub_refusal`."""
        revision = self.revision_of(canonical_name(reference))
        return hub_refusal(reference, revision=revision, timeout=timeout)

    def load(
        self,
        reference: str,
        *,
        weights: Path | None,
        device: torch.device,
        dtype: AskedDtype,
        compile: bool = False,
    ) -> Encoder:
        """Load an encoder at the study's sizes; see :func:`stages.encoders.load_encoder`."""
        return load_encoder(
            reference,
            tile_px=self._study.data.tile_px,
            weights=weights,
            revision=self.revision_of(canonical_name(reference)),
            fit=self._study.encoders.fit,
            input_px=self._input_px_of(reference),
            device=device,
            dtype=dtype,
            compile=compile,
        )

    def _input_px_of(self, reference: str) -> int | None:
        said = _of(self._sizes, canonical_name(reference))
        return None if said is None else said[1]

    @cached_property
    def _weights(self) -> dict[str, tuple[str, Path]]:
        paths = {name: Path(path) for name, path in self._study.encoders.weights.items()}
        return _by_name(paths, "encoders.weights")

    @cached_property
    def _revisions(self) -> dict[str, tuple[str, str]]:
        return _by_name(self._study.encoders.revisions, "encoders.revisions")

    @cached_property
    def _sizes(self) -> dict[str, tuple[str, int]]:
        return _by_name(self._study.encoders.input_px, "encoders.input_px")


def _by_name(said: Mapping[str, V], where: str) -> dict[str, tuple[str, V]]:
    """Return what is said by canonical name, with what the encoder is called there."""
    found: dict[str, tuple[str, V]] = {}
    for reference, value in said.items():
        name = canonical_name(reference)
        if name in found:
            raise InputError(
                f"{found[name][0]} and {reference} are one encoder, {name}",
                where=where,
                remedy="Leave one out.",
            )
        found[name] = (reference, value)
    return found


def _of(said: Mapping[str, tuple[str, V]], name: str) -> tuple[str, V] | None:
    return said.get(name, said.get(name.partition("@")[0]))
