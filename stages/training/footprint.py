"""What a training step takes of memory, found without computing it, and how many tiles fit into what there is."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from stages.decoders import Geometry, build_decoder, set_upconv_mode
from stages.training.loss import LOSSES
from stages.training.settings import TrainSettings
from store.errors import InputError

# Beyond the tensors: gaps between kept blocks, and what the convolutions' library takes for itself. On two CPU cores,
# at 512 px and d = 1024, a process grew by 1.03 (one tile) to 1.32 (eight tiles) times the tensors of a step.
OVERHEAD = 1.35
_STATES = 3  # of a parameter beside itself: its gradient and NAdam's two averages


def step_bytes(settings: TrainSettings, geometry: Geometry, tiles: int) -> int:
    """Return the most bytes that the tensors of a training step on ``tiles`` tiles take at the same time.

    Parameters, gradients and the optimiser's states are among them; token grids and masks of other batches are not.
    """
    with torch.device("meta"):
        decoder = build_decoder(settings.decoder, geometry, **settings.options)
        tokens = torch.empty(tiles, geometry.width_in, *geometry.grid)
        truth = torch.zeros(tiles, geometry.target_px, geometry.target_px, dtype=torch.uint8)
    set_upconv_mode(decoder, settings.upconv)
    states = _STATES * 4 * sum(parameter.numel() for parameter in decoder.parameters())
    if settings.precision == "bfloat16":  # the meta device knows no autocast
        decoder, tokens = decoder.to(torch.bfloat16), tokens.to(torch.bfloat16)
    tokens = tokens.contiguous(memory_format=torch.channels_last)
    living = _Living()
    with living:
        LOSSES[settings.loss](decoder(tokens), truth).backward()
    return living.most + states


def tiles_at_once(settings: TrainSettings, geometry: Geometry, limit: int) -> int:
    """Return how many tiles of a batch a training step may take at a time to stay within ``limit`` bytes.

    At most the batch. ``InputError`` where one tile alone takes more.
    """
    fits, fails = 0, settings.batch + 1
    while fails - fits > 1:
        # The whole batch first, which is what mostly fits.
        tiles = settings.batch if fails > settings.batch else (fits + fails) // 2
        if OVERHEAD * step_bytes(settings, geometry, tiles) <= limit:
            fits = tiles
        else:
            fails = tiles
    if fits == 0:
        needed = OVERHEAD * step_bytes(settings, geometry, 1)
        raise InputError(
            f"a training step of the decoder {settings.decoder} on a single tile takes about "
            f"{_amount(needed)}, and {_amount(max(0, limit))} are left for it",
            where="memory",
            remedy="Allow more memory, or train with a smaller decoder or smaller tiles.",
        )
    return fits


def _amount(size: float) -> str:
    """Return so many bytes in the unit in which they are one to four digits before the point."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


class _Living(TorchDispatchMode):
    """Counts the bytes of the tensors made inside of it that live at the same time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most: int = 0
        self._now: int = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known[storage._cdata] = storage.nbytes()
        self._now += storage.nbytes()
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self._now -= self._known.pop(key)
