"""An encoder that is known by heart."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch

from stages.encoders import TokenGrid


class Corner:
    """An encoder whose only token is a view's first pixel; one of its batches can be made bad."""

    name = "corner"
    parameters = 0
    grid = TokenGrid(3, 1, 1)
    identity: Mapping[str, Any] = {"encoder": "corner"}
    provenance: Mapping[str, Any] = {}

    def __init__(self, bad_batch: int | None = None, value: float = float("nan")) -> None:
        self.batches: list[int] = []
        self.bad_batch, self.value = bad_batch, value
        self.threads: set[int] = set()

    def encode(self, views: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(views))
        self.threads.add(threading.get_ident())
        tokens = views[:, :, :1, :1].float()
        if len(self.batches) == self.bad_batch:
            tokens[0, 0] = self.value
        return tokens
