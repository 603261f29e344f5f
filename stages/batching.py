"""How many views are encoded at a time: as many as the memory takes, and fewer when it turns out to take fewer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from stages.encoders import Encoder
from store.errors import InputError

CPU_SIZE: Final = 4  # a CPU gains nothing from more, and each view takes memory
LARGEST: Final = 64  # a GPU gains nothing from more
FREE_SHARE: Final = 0.8  # of the free memory, since allocators waste some

_NO_MEMORY: Final = ("out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that a GPU has no memory left; its libraries say so in words of their own."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def fitting_size(one: int, two: int, free: int) -> int:
    """Return how many views fit ``free`` bytes where a batch of one takes ``one`` and a batch of two ``two``.

    A power of two from 1 to ``LARGEST``: what a batch takes is what it takes without views and what each view adds.
    """
    a_view = max(two - one, 1)
    fits = 1 + int((FREE_SHARE * free - one) // a_view)
    return 1 << (min(max(fits, 1), LARGEST).bit_length() - 1)


@dataclass
class Batches:
    """Encodes views in batches of at most ``size``, halving ``size`` whenever the device has no memory for it.

    ``started`` is the size that was tried first. What is encoded does not depend on the size, beyond the rounding of
    sums in another order. ``frees_cores`` says that encoding leaves the processor's cores to others, as on a GPU.
    """

    encoder: Encoder
    size: int
    frees_cores: bool = False
    started: int = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.size

    def encode(self, views: torch.Tensor) -> NDArray[np.float16]:
        """Encode (B, 3, px, px) uint8 views, of any number B, to (B, d, h, w) float16.

        Beyond float16's range the result is infinite, which the store refuses, naming tile and view. Raises
        ``InputError`` when a single view is too much for the device.
        """
        parts: list[NDArray[np.float16]] = []
        done = 0
        while done < len(views):
            part = self._tried(views[done : done + self.size])
            if part is not None:
                parts.append(part)
                done += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _tried(self, views: torch.Tensor) -> NDArray[np.float16] | None:
        """Return the tokens of ``views``, or None, with a smaller ``size``, where the device has no memory for them."""
        try:
            return np.asarray(self.encoder.encode(views).to(torch.float16).cpu().numpy())
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # out of the clause, since the error holds the frames, and those the tensors that are to be freed
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(views) == 1:
            raise InputError(
                f"the device has no memory for {self.encoder.name}, not even for one view at a time",
                where="device",
                remedy="Use --dtype float16 or bfloat16, a device with more free memory, or --device cpu.",
            )
        self.size = len(views) // 2
        return None


def batches_for(encoder: Encoder, px: int, device: torch.device, size: int | None = None) -> Batches:
    """Return the batches for views of ``px`` pixels: of ``size``, or as many as fit ``device``.

    On a GPU measured with one and with two blank views; ``CPU_SIZE`` elsewhere.
    """
    if size is None:
        size = _measured_size(encoder, px, device) if device.type == "cuda" else CPU_SIZE
    return Batches(encoder, size, frees_cores=device.type != "cpu")


def _measured_size(encoder: Encoder, px: int, device: torch.device) -> int:
    probe = Batches(encoder, 2)
    one, two = (_peak(probe, count, px, device) for count in (1, 2))
    if probe.size == 1:
        return 1
    return fitting_size(one, two, torch.cuda.mem_get_info(device)[0])


def _peak(batches: Batches, count: int, px: int, device: torch.device) -> int:
    """Return the bytes that encoding ``count`` views takes at most, beside what is taken already."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    batches.encode(torch.zeros((count, 3, px, px), dtype=torch.uint8))
    peak = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    return peak
