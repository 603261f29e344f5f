"""How arrays reach the device that trains: a GPU takes them while this process goes on with the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Return a region in which a GPU is the current one of this thread; elsewhere it does nothing.

    Recordings, streams and page-locked memory belong to the current GPU, and asking for them on another one opens a
    context there, which takes memory of it.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def host_space(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a new tensor in host memory from which ``device`` is to be filled; for a GPU page-locked.

    A GPU takes a batch from there several times faster, and without keeping this process waiting. Such memory is not
    used again before a copy that was begun from it, by :func:`sent`, has ended.
    """
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")


def sent(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return ``host`` on ``device``; a copy to a GPU is queued there, in front of what is asked of it next.

    What is there already is returned as it is.
    """
    if device.type != "cuda" or host.device.type == "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)  # as it is where it is page-locked


def arrival(device: torch.device) -> Callable[[], None]:
    """Return what waits until all that was sent to ``device`` so far is there, and its source free again."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event.synchronize
