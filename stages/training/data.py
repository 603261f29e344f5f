"""Token grids and masks as training reads them: from memory, or streamed ahead of the step that needs them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from store.errors import InputError

Rows = NDArray[np.intp]


class BatchReader(Protocol):
    """What is asked of a store's reader: many grids at once, into an array that is given."""

    def read_many(
        self, keys: Sequence[Any], out: NDArray[Any] | None = None, *, threads: int = 2
    ) -> NDArray[Any]:
        """Read the grids of ``keys``, in order, into ``out`` (len(keys), d, h, w) float16."""
        ...


class Features(Protocol):
    """Token grids by row number; the same rows give the same batch wherever the grids are held."""

    def gather(self, rows: Rows) -> torch.Tensor:
        """Return the grids of ``rows`` (B,) as (B, d, h, w) float32 on the training device, channels last."""
        ...

    def batches(self, order: Sequence[Rows]) -> Generator[torch.Tensor, None, None]:
        """Yield ``gather(rows)`` for each batch of ``order``, reading ahead where that helps."""
        ...


def _to_device(grids: torch.Tensor, device: torch.device) -> torch.Tensor:
    return grids.to(device).to(torch.float32, memory_format=torch.channels_last)


class ResidentFeatures:
    """All grids in one float16 tensor (N, d, h, w), in host memory or on the training device."""

    def __init__(self, grids: torch.Tensor, device: torch.device) -> None:
        if grids.dtype != torch.float16 or grids.ndim != 4:
            raise InputError(
                f"token grids are float16 (N, d, h, w), not {grids.dtype} {tuple(grids.shape)}",
                where="features",
                remedy="Give the grids as the feature cache holds them.",
            )
        self._grids = grids
        self._device = device

    @classmethod
    def read(
        cls,
        reader: BatchReader,
        keys: Sequence[Any],
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        on_device: bool = False,
        threads: int = 2,
    ) -> ResidentFeatures:
        """Read the grids of ``keys``, each of ``shape`` (d, h, w), into host memory or onto ``device``.

        Row i is ``keys[i]``. Errors are the reader's.
        """
        grids = torch.empty((len(keys), *shape), dtype=torch.float16, device=device if on_device else "cpu")
        block = 64 if grids.device.type != "cpu" else max(1, len(keys))
        for start in range(0, len(keys), block):
            part = grids[start : start + block]
            host = part if part.device.type == "cpu" else torch.empty_like(part, device="cpu")
            reader.read_many(keys[start : start + block], out=host.numpy(), threads=threads)
            if host is not part:
                part.copy_(host)
        return cls(grids, device)

    def gather(self, rows: Rows) -> torch.Tensor:
        """Return the grids of ``rows``; see :class:`Features`."""
        index = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(self._grids.device)
        return _to_device(self._grids.index_select(0, index), self._device)

    def batches(self, order: Sequence[Rows]) -> Generator[torch.Tensor, None, None]:
        """Yield the batches of ``order``."""
        for rows in order:
            yield self.gather(rows)


class StreamedFeatures:
    """Grids that stay in their store; row i is ``keys[i]``, and a thread reads ``ahead`` batches in advance.

    Memory: ``ahead + 1`` batches of float16, whatever the number of grids. An error of the reader is raised where
    its batch is asked for.
    """

    def __init__(
        self,
        reader: BatchReader,
        keys: Sequence[Any],
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        ahead: int = 2,
        threads: int = 2,
    ) -> None:
        self._reader = reader
        self._keys = keys
        self._shape = shape
        self._device = device
        self._ahead = ahead
        self._threads = threads

    def gather(self, rows: Rows) -> torch.Tensor:
        """Read the grids of ``rows`` now; see :class:`Features`."""
        space = np.empty((len(rows), *self._shape), dtype=np.float16)
        return _to_device(self._read(rows, space), self._device)

    def batches(self, order: Sequence[Rows]) -> Generator[torch.Tensor, None, None]:
        """Yield the batches of ``order``, which are read in the background; closing the iterator stops that."""
        largest = max((len(rows) for rows in order), default=0)
        free: SimpleQueue[NDArray[np.float16] | None] = SimpleQueue()
        ready: SimpleQueue[tuple[NDArray[np.float16], torch.Tensor] | BaseException] = SimpleQueue()
        for _ in range(self._ahead + 1):
            free.put(np.empty((largest, *self._shape), dtype=np.float16))

        def read_ahead() -> None:
            try:
                for rows in order:
                    space = free.get()
                    if space is None:
                        return
                    ready.put((space, self._read(rows, space[: len(rows)])))
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
                batch = _to_device(grids, self._device)
                free.put(space)
                yield batch
        finally:
            while not free.empty():
                free.get()
            free.put(None)
            thread.join()

    def _read(self, rows: Rows, space: NDArray[np.float16]) -> torch.Tensor:
        self._reader.read_many([self._keys[row] for row in rows], out=space, threads=self._threads)
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
                yield batch, torch.from_numpy(self.masks[self.mask_rows[at]]).to(device)
