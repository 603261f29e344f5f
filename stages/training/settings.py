"""How a decoder is trained: the paper's protocol (section 2.4), and what a study may change of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from stages.decoders.upconv import UpConvMode
from stages.training.loss import LOSSES
from store.errors import InputError, InputErrors

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class TrainSettings:
    """The protocol of a run; the defaults are the paper's.

    ``decoder`` and its ``options`` as for ``build_decoder``, ``loss`` one of ``LOSSES``. ``lr`` falls along a cosine
    to 0 over each ``restart_epochs`` epochs. ``upconv`` and ``precision`` choose how, not what, is computed: "bfloat16"
    runs the decoder under autocast with float32 weights, sums and loss. ``cuda_graphs`` has full batches recorded once
    and replayed, on GPUs only. ``InputErrors`` with every value that cannot be.
    """

    decoder: str = "single-scale"
    options: Mapping[str, Any] = field(default_factory=dict)
    loss: str = "ce+dice"
    epochs: int = 50
    validate_every: int = 10
    batch: int = 8
    lr: float = 1e-4
    restart_epochs: int = 10
    upconv: UpConvMode = "auto"
    precision: Precision = "float32"
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        faults = [
            InputError(f"{name} is {getattr(self, name)!r}", where="train", remedy="Give 1 or more.")
            for name in ("epochs", "validate_every", "batch", "restart_epochs")
            if getattr(self, name) < 1
        ]
        if not 0 < self.lr < math.inf:
            faults.append(
                InputError(f"lr is {self.lr!r}", where="train", remedy="Give a learning rate above 0.")
            )
        choices = (
            ("loss", tuple(LOSSES)),
            ("upconv", get_args(UpConvMode)),
            ("precision", get_args(Precision)),
        )
        for name, known in choices:
            if getattr(self, name) not in known:
                remedy = f"Choose one of {', '.join(known)}."
                faults.append(InputError(f"{name} is {getattr(self, name)!r}", where="train", remedy=remedy))
        if faults:
            raise InputErrors(faults, remedy="Correct the table [train] of the study.")

    def validates_after(self, epoch: int) -> bool:
        """Return whether epoch (from 1) ends with a validation: every ``validate_every``-th, and the last."""
        return epoch % self.validate_every == 0 or epoch == self.epochs

    def check_device(self, device: torch.device) -> None:
        """Raise ``InputError`` where these settings ask for what ``device`` cannot do."""
        if self.cuda_graphs and device.type != "cuda":
            raise InputError(
                f"the device is {device.type}, which has no CUDA graphs",
                where="train.cuda_graphs",
                remedy="Leave it out of the study, or train on an NVIDIA GPU.",
            )
