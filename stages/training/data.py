"""Token grids and masks as training reads them: from memory, or streamed ahead of the step that needs them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stages.training.device import arrival, host_space, on_device, sent
from store import GridSpec
from store.errors import InputError
from store.int8 import TAIL

Rows = NDArray[np.intp]


class BatchReader(Protocol):
    """What is asked of a store's reader: many grids at once in their stored form, into an array that is given."""

    def read_stored_many(
        self, keys: Sequence[Any], out: NDArray[Any] | None = None, *, threads: int = 2
    ) -> NDArray[Any]:
        """Read the grids of ``keys``, in order, into ``out`` (len(keys), *stored_shape)."""
        ...


class Features(Protocol):
    """Token grids by row number; the same rows give the same batch wherever the grids are held."""

    def gather(self, rows: Rows) -> torch.Tensor:
        """Return the grids of ``rows`` (B,) as (B, d, h, w) float32 on the training device, channels last."""
        ...

    def batches(self, order: Sequence[Rows]) -> Generator[torch.Tensor, None, None]:
        """Yield ``gather(rows)`` for each batch of ``order``, reading ahead where that helps."""
        ...


def token_values(stored: torch.Tensor, spec: GridSpec, device: torch.device) -> torch.Tensor:
    """Return token grids (B, d, h, w) float32 on ``device``, channels last, from their stored form (B, *stored_shape).

    The values are those that the store's reader returns, bit for bit: of the int8 form, the product of step and scale
    rounded to float32, the sum with the zero rounded to float32, and that rounded to float16. From host memory a GPU
    copies them later: what is page-locked has to stay as it is until then, see :mod:`stages.training.device`.
    """
    stored = sent(stored, device)
    if spec.encoding == "exact":
        return stored.to(torch.float32, memory_format=torch.channels_last)
    tail = stored[..., -TAIL:].contiguous().view(torch.float32)
    # In two steps: a fused multiplication and addition rounds once, and some values come out differently.
    values = stored[..., :-TAIL].to(torch.float32).mul_(tail[..., :1]).add_(tail[..., 1:])
    grids = values.to(torch.float16).reshape(-1, *spec.shape)
    return grids.to(torch.float32, memory_format=torch.channels_last)


class ResidentFeatures:
    """All grids in one tensor (N, *stored_shape), in host memory or on the training device.

    They stay in their stored form: 2 bytes a value, 1 in the int8 form, which is decoded batch by batch on ``device``.
    """

    def __init__(self, grids: torch.Tensor, spec: GridSpec, device: torch.device) -> None:
        wanted = (getattr(torch, spec.stored_dtype), spec.stored_shape)
        if spec.dtype != "float16" or len(spec.shape) != 3 or (grids.dtype, tuple(grids.shape[1:])) != wanted:
            raise InputError(
                f"{grids.dtype} {tuple(grids.shape)} are no token grids, which are float16 (N, d, h, w) or the int8 "
                "form of that",
                where="features",
                remedy="Give the grids as the feature cache holds them.",
            )
        self._grids = grids
        self._spec = spec
        self._device = device

    @classmethod
    def read(
        cls,
        reader: BatchReader,
        keys: Sequence[Any],
        spec: GridSpec,
        device: torch.device,
        *,
        on_device: bool = False,
        threads: int = 2,
    ) -> ResidentFeatures:
        """Read the grids of ``keys``, which the store keeps as ``spec``, into host memory or onto ``device``.

        Row i is ``keys[i]``. Errors are the reader's.
        """
        grids = torch.empty(
            (len(keys), *spec.stored_shape),
            dtype=getattr(torch, spec.stored_dtype),
            device=device if on_device else "cpu",
        )
        block = 64 if grids.device.type != "cpu" else max(1, len(keys))
        for start in range(0, len(keys), block):
            part = grids[start : start + block]
            host = part if part.device.type == "cpu" else torch.empty_like(part, device="cpu")
            reader.read_stored_many(keys[start : start + block], out=host.numpy(), threads=threads)
            if host is not part:
                part.copy_(host)
        return cls(grids, spec, device)

    def gather(self, rows: Rows) -> torch.Tensor:
        """Return the grids of ``rows``; see :class:`Features`."""
        index = sent(torch.from_numpy(np.asarray(rows, dtype=np.int64)), self._grids.device)
        if self._grids.device.type == "cpu":
            batch = host_space((len(index), *self._spec.stored_shape), self._grids.dtype, self._device)
            torch.index_select(self._grids, 0, index, out=batch)
        else:
            batch = self._grids.index_select(0, index)
        return token_values(batch, self._spec, self._device)

    def batches(self, order: Sequence[Rows]) -> Generator[torch.Tensor, None, None]:
        """Yield the batches of ``order``."""
        for rows in order:
            yield self.gather(rows)


class _Space(NamedTuple):
    """Host memory for a batch, and what waits until nothing is copied from it any more."""

    array: NDArray[Any]
    wait: Callable[[], None]


class StreamedFeatures:
    """Grids that stay in their store; row i is ``keys[i]``, and a thread reads ``ahead`` batches in advance.

    Memory: ``ahead + 1`` batches in their stored form, whatever the number of grids. An error of the reader is raised
    where its batch is asked for.
    """

    def __init__(
        self,
        reader: BatchReader,
        keys: Sequence[Any],
        spec: GridSpec,
        device: torch.device,
        *,
        ahead: int = 2,
        threads: int = 2,
    ) -> None:
        self._reader = reader
        self._keys = keys
        self._spec = spec
        self._device = device
        self._ahead = ahead
        self._threads = threads

    def gather(self, rows: Rows) -> torch.Tensor:
        """Read the grids of ``rows`` now; see :class:`Features`."""
        return token_values(self._read(rows, self._spec.empty_stored(len(rows))), self._spec, self._device)

    def batches(self, order: Sequence[Rows]) -> Generator[torch.Tensor, None, None]:
        """Yield the batches of ``order``, which are read in the background; closing the iterator stops that."""
        largest = max((len(rows) for rows in order), default=0)
        free: SimpleQueue[_Space | None] = SimpleQueue()
        ready: SimpleQueue[tuple[_Space, torch.Tensor] | BaseException] = SimpleQueue()
        for _ in range(self._ahead + 1):
            free.put(_Space(self._space(largest), lambda: None))

        def read_ahead() -> None:
            try:
                with on_device(self._device):  # which is set for each thread
                    for rows in order:
                        space = free.get()
                        if space is None:
                            return
                        space.wait()
                        ready.put((space, self._read(rows, space.array[: len(rows)])))
            except BaseException as error:
                ready.put(error)

        thread = Thread(target=read_ahead, name="frostgrid-features", daemon=True)
        thread.start()
        try:
            for _ in order:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                space, grids = item
                batch = token_values(grids, self._spec, self._device)
                free.put(space._replace(wait=arrival(self._device)))
                yield batch
        finally:
            with suppress(Empty):  # the other thread may take the last one at any time
                while (left := free.get_nowait()) is not None:
                    left.wait()  # before it is freed
            free.put(None)
            thread.join()

    def _space(self, views: int) -> NDArray[Any]:
        shape, dtype = (views, *self._spec.stored_shape), getattr(torch, self._spec.stored_dtype)
        space: NDArray[Any] = host_space(shape, dtype, self._device).numpy()
        return space

    def _read(self, rows: Rows, space: NDArray[Any]) -> torch.Tensor:
        self._reader.read_stored_many([self._keys[row] for row in rows], out=space, threads=self._threads)
        return torch.from_numpy(space)


@dataclass(frozen=True, eq=False)
class SplitData:
    """The tiles of one split: which rows of ``features`` and ``masks`` are which view of which tile.

    ``rows`` and ``mask_rows`` are (tiles, views) whole numbers, ``masks`` (N, H, W) uint8 with class index or 255,
    ``names`` what people call the tiles. Validation and test tiles have one view. ``InputError`` where the shapes
    do not fit together or the split is empty.
    """

    features: Features
    rows: Rows
    masks: NDArray[np.uint8]
    mask_rows: Rows
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        shapes_fit = self.rows.ndim == 2 and self.rows.shape == self.mask_rows.shape
        if not shapes_fit or self.rows.size == 0 or len(self.rows) != len(self.names):
            raise InputError(
                f"{len(self.names)} tiles cannot have feature rows {self.rows.shape} and mask rows "
                f"{self.mask_rows.shape}",
                where="split",
                remedy="Give one feature row and one mask row for each view of each tile, and at least one tile.",
            )
        if self.masks.ndim != 3 or self.masks.dtype != np.uint8:
            raise InputError(
                f"masks are uint8 (N, H, W), not {self.masks.dtype} {self.masks.shape}",
                where="split",
                remedy="Give class indices below 255, and 255 for ignored pixels.",
            )

    def __len__(self) -> int:
        return len(self.names)

    def examples(
        self, chosen: Sequence[tuple[Rows, Rows]], device: torch.device
    ) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        """Yield (tokens float32, truth uint8) on ``device`` for batches of (tile positions, their views)."""
        with closing(self.features.batches([self.rows[at] for at in chosen])) as tokens:
            for at, batch in zip(chosen, tokens, strict=True):
                yield batch, sent(torch.from_numpy(self.masks[self.mask_rows[at]]), device)
