"""The token grids and masks of one feature cache in memory, read once for every run that is trained on them."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.budget import Room
from pipeline.tilesets import Selection, TileSet
from stages.training.data import Features, ResidentFeatures, SplitData, StreamedFeatures
from stages.training.memory import choose_residency
from store import GridReader, GridStore, ViewKey
from store.disk_errors import storage_error, storage_errors
from store.durable import make_folder
from store.errors import DamagedGrid, MissingViews, StorageError

NAMED_TILES = 5  # in one message
DECODING_THREADS = 2  # of streamed grids, where there are as many


class Shared:
    """An array that the processes started from this one see, too: one copy, gone with the last of them.

    In memory, or (``folder``) in a file without a name there. It can be pickled only to start such a process with.
    Raises :class:`StorageError` where there is no room for it.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, folder: Path | None = None) -> None:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            self._reserve(nbytes, folder)
        except OSError as error:
            if folder is not None:
                raise storage_error(error, folder) from error
            raise StorageError(
                f"There is no room for {nbytes / 1e9:.1f} GB in the memory that processes share: {error.strerror}",
                remedy="Give --max-memory, so that features are streamed, or train without --parallel.",
            ) from error
        self._map(shape, dtype)

    def _reserve(self, nbytes: int, folder: Path | None) -> None:
        if folder is None and hasattr(os, "memfd_create"):
            self._number = os.memfd_create("frostgrid")
        else:
            with tempfile.TemporaryFile(dir=folder) as file:
                self._number = os.dup(file.fileno())
        # Now and not when it is used: writing to a hole for which there is no space ends the process without a word.
        if hasattr(os, "posix_fallocate") and nbytes:
            os.posix_fallocate(self._number, 0, nbytes)
        else:
            os.ftruncate(self._number, nbytes)

    def _map(self, shape: tuple[int, ...], dtype: str) -> None:
        self._shape, self._dtype = shape, dtype
        self.array: NDArray[Any] = np.frombuffer(mmap.mmap(self._number, 0), dtype).reshape(shape)

    def __getstate__(self) -> tuple[Any, ...]:
        return DupFd(self._number), self._shape, self._dtype

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        number, shape, dtype = state
        self._number = number.detach()
        self._map(shape, dtype)

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            os.close(self._number)  # what is mapped stays so until nobody uses it


@dataclass(frozen=True)
class Loaded:
    """Views of one feature cache with their masks, in the rows of ``tiles``.

    ``grids``: the token grids as this process trains on them; or all of them, (N, *stored_shape), as others see them;
    None where that takes more memory than there is: then they are streamed from ``tokens``. ``masks``
    (N, px, px) uint8. ``step``: bytes of a GPU that are left to a training step. It can be pickled where its arrays are
    :class:`Shared`.
    """

    tokens: GridStore
    tiles: TileSet
    grids: Features | Shared | None
    masks: Shared | NDArray[np.uint8]
    step: int = 0

    @property
    def mask_array(self) -> NDArray[np.uint8]:
        """The masks."""
        return self.masks.array if isinstance(self.masks, Shared) else self.masks

    def features(self, device: torch.device, threads: int = DECODING_THREADS) -> Features:
        """Return the token grids for training on ``device``: from there, from host memory, or streamed.

        ``threads``: how many this process may have.
        """
        if self.grids is None:
            keys, threads = self.tiles.view_keys, min(threads, DECODING_THREADS)
            return StreamedFeatures(self.tokens.reader(), keys, self.tokens.spec, device, threads=threads)
        if not isinstance(self.grids, Shared):
            return self.grids
        grids = torch.from_numpy(self.grids.array)
        if choose_residency(grids.nbytes, device, step=self.step) == "device":
            grids = grids.to(device)
        return ResidentFeatures(grids, self.tokens.spec, device)

    def splits(self, features: Features, selection: Selection) -> dict[str, SplitData]:
        """Return the data of one run."""
        data = {}
        for split, (positions, views) in selection.items():
            rows = self.tiles.rows(positions, views)
            data[split] = SplitData(features, rows, self.mask_array, rows, self.tiles.names_of(positions))
        return data


def load(
    tokens: GridStore,
    masks: GridStore,
    tiles: TileSet,
    device: torch.device,
    room: Room,
    *,
    encoder: str,
    scratch: Path,
    shared: bool = False,
) -> Loaded:
    """Read the token grids and masks of ``tiles``; with ``shared`` other processes can have them without a copy.

    ``room`` says what of them stays in memory: other grids are streamed, other masks go to a file without a name in the
    folder ``scratch``. Raises :class:`store.errors.MissingViews` when a store lacks one of them, :class:`StorageError`
    where memory or ``scratch`` have no room for them.
    """
    keys, mask_keys = tiles.view_keys, tiles.mask_view_keys
    reader = complete(tokens, tiles, keys, encoder)
    mask_reader = complete(masks, tiles, mask_keys, encoder)
    spec = reader.spec
    grids: Features | Shared | None = None
    if shared and room.residency != "stream":
        grids = Shared((len(keys), *spec.stored_shape), spec.stored_dtype)
        reader.read_stored_many(keys, out=grids.array)
    elif room.residency != "stream":
        grids = ResidentFeatures.read(reader, keys, spec, device, on_device=room.residency == "device")
    mask_shape = (len(keys), *mask_reader.spec.shape)
    with storage_errors(scratch):
        make_folder(scratch)
    space: Shared | NDArray[np.uint8]
    if room.masks and not shared:
        space = np.empty(mask_shape, np.uint8)
    else:
        space = Shared(mask_shape, "uint8", None if room.masks else scratch)
    loaded = Loaded(tokens, tiles, grids, space, room.step)
    mask_reader.read_many(mask_keys, out=loaded.mask_array)
    return loaded


def complete(store: GridStore, tiles: TileSet, keys: Sequence[ViewKey], encoder: str) -> GridReader:
    """Return the store's reader if it holds all ``keys``, those of ``tiles``; else say which tiles it lacks.

    Raises :class:`store.errors.MissingViews`.
    """
    reader = store.reader()
    missing = set(reader.missing(keys))
    if not missing:
        return reader
    names = dict(zip(keys, tiles.row_names, strict=True))
    lost = set(reader.damaged())
    lacking = dict.fromkeys(names[key] for key in keys if key in missing)
    present = {reader.row(key).name: key.tile for key in reader.views()}
    kept = {key.tile for key in (*reader.views(), *lost)}
    wanted = {name: key.tile for key, name in names.items()}
    changed = [name for name, tile in wanted.items() if name in present and tile not in kept]
    what = f"{store.path.name} lacks {len(missing)} of the {len(keys)} views of this study"
    what += f" (tiles {few(lacking)})"
    if changed:
        what += f"; these tiles are cached with other pixels or another mask: {few(changed)}"
    if lost & missing:
        what += f"; of them {len(lost & missing)} were there and their shards are lost or cut"
        try:
            reader.row(next(key for key in keys if key in lost & missing))
        except DamagedGrid as first:
            what += f", such as {first.where}: {first.what}"
    raise MissingViews(
        what,
        where=store.path,
        remedy="Restore the images or masks that changed, or extract what is missing: "
        f"frostgrid extract STUDY --encoder {encoder}.",
    )


def few(names: Iterable[str]) -> str:
    """Return the first of many names."""
    first = list(islice(names, NAMED_TILES + 1))
    return ", ".join(first[:NAMED_TILES]) + (", …" if len(first) > NAMED_TILES else "")
