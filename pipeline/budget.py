"""What of the memory there is goes to a training step, and what to token grids and masks that stay in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from stages.decoders import Geometry
from stages.training.footprint import OVERHEAD, step_bytes, tiles_at_once
from stages.training.memory import HOST_SHARE, Residency, available_memory, choose_residency
from stages.training.settings import TrainSettings
from store import GridSpec
from store.errors import InputError

STREAMED_BATCHES = 3  # of token grids that wait to be trained on
PROCESS_BYTES = 400 << 20  # what a process takes that has loaded torch and trains nothing yet
KEPT_SHARE = 0.2  # of what processes leave of the allowed memory: for grids and masks; the rest is the step's
MASK_SHARE = 0.2  # of what grids and masks may take together, or of all that there is; grids take the rest
GPU_SHARE = 0.9  # of a GPU's memory: the rest is its context's, and that of the libraries
GPU_PARTS = 8  # of a GPU's memory, of which a step is left whole ones: similar runs share what is held on it


@dataclass(frozen=True)
class Budget:
    """How a run gets along with the memory it may use.

    ``at_once``: tiles that a step takes at a time, None for its whole batch. ``kept``: bytes of host memory that grids
    and masks may stay in, None for what there is room for. ``step``: bytes that a step takes of a GPU.
    """

    at_once: int | None = None
    kept: int | None = None
    step: int = 0

    @classmethod
    def of_all(cls, budgets: Iterable[Budget]) -> Budget:
        """Return what is to be held of the data of several runs, at least one, so that each of them can be trained."""
        some = list(budgets)
        kept = [one.kept for one in some if one.kept is not None]
        return cls(None, min(kept, default=None), max(one.step for one in some))


def budget_for(
    settings: TrainSettings,
    geometry: Geometry,
    devices: Sequence[torch.device],
    memory: int | None,
    *,
    shared: bool = False,
) -> Budget:
    """Return how a run gets along with ``memory`` bytes of host memory in all, None for what there is.

    It is a function of these arguments, and on GPUs of the size of the smallest of ``devices``: neither what else runs
    nor what data there are has a say, since the number of tiles at a time decides the last bits of the weights. With
    ``shared`` each of ``devices`` has a process of its own, beside the one that asks: how many there are, does. Raises
    :class:`InputError` where not even one tile fits, and nothing is kept in memory.
    """
    if devices[0].type == "cuda":
        return _on_gpus(settings, geometry, devices, memory)
    if memory is None:
        return Budget()
    count = len(devices)
    left = memory - PROCESS_BYTES * (count + shared)
    grid_bytes = 2 * geometry.width_in * geometry.grid[0] * geometry.grid[1]
    waiting = count * STREAMED_BATCHES * settings.batch * grid_bytes
    kept = max(0, int(KEPT_SHARE * left))
    taken = max(kept, int(MASK_SHARE * kept) + waiting)  # by grids that stay in memory, or are streamed
    try:
        return Budget(tiles_at_once(settings, geometry, (left - taken) // count), kept)
    except InputError:
        return Budget(tiles_at_once(settings, geometry, (left - waiting) // count), 0)


def _on_gpus(
    settings: TrainSettings, geometry: Geometry, devices: Sequence[torch.device], memory: int | None
) -> Budget:
    least = min(torch.cuda.get_device_properties(device).total_memory for device in devices)
    times = 2 if settings.cuda_graphs else 1  # a recording keeps its memory, and other batches take theirs
    at_once = tiles_at_once(settings, geometry, int(GPU_SHARE * least) // times)
    step = times * int(OVERHEAD * step_bytes(settings, geometry, at_once))
    part = least // GPU_PARTS
    return Budget(at_once, None if memory is None else int(HOST_SHARE * memory), -(-step // part) * part)


@dataclass(frozen=True)
class Room:
    """Where the token grids of a cache are held while decoders train on them, and whether masks are in memory.

    ``step``: bytes of a GPU that have to be left for a training step.
    """

    residency: Residency
    masks: bool
    step: int = 0


def room_for(
    spec: GridSpec,
    mask_spec: GridSpec,
    views: int,
    device: torch.device,
    budget: Budget,
    *,
    available: int | None = None,
    shared: bool = False,
) -> Room:
    """Return what of ``views`` token grids and masks can stay in memory.

    Of ``available`` bytes of host memory (default: those that this process can still take), and of those of ``budget``
    where it has a limit. What is ``shared`` with other processes lies in host memory, even if each takes it on to a
    GPU.
    """
    grids, masks = views * spec.stored_nbytes, views * mask_spec.stored_nbytes
    available = available_memory() if available is None else available
    for_grids, for_masks = HOST_SHARE * available, MASK_SHARE * available
    if budget.kept is not None:
        for_masks = min(for_masks, MASK_SHARE * budget.kept)
        for_grids = min(for_grids, (1 - MASK_SHARE) * budget.kept)
    residency = choose_residency(grids, torch.device("cpu") if shared else device, step=budget.step)
    if residency == "host" and grids > for_grids:
        residency = "stream"
    return Room(residency, masks <= for_masks, budget.step)
