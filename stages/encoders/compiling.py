"""Translating an encoder's forward pass by torch.compile: slow once, faster from then on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._dynamo.exc import TorchDynamoException

from store.errors import InputError

Forward = Callable[[torch.Tensor], torch.Tensor]


def compiled(forward: Forward, name: str) -> Forward:
    """Return ``forward`` (images to tokens, both any shape) translated by torch.compile when it is first called.

    The translation takes a minute or so, and once more for another batch size. Raises ``InputError`` where this
    machine cannot do it, for want of a C++ compiler or of Triton, say; running out of memory stays what it is.
    """
    translated = torch.compile(forward)

    def run(images: torch.Tensor) -> torch.Tensor:
        try:
            return translated(images)
        except TorchDynamoException as error:
            if "out of memory" in str(error).lower():
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"torch.compile cannot translate {name} on this machine: {reason}",
                where="compile",
                remedy="Leave --compile out; the tokens are the same without it, up to rounding.",
            ) from error

    return run
