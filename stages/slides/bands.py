"""Finished bands of a map on disk: each complete and durable, or not there, so that a killed job can go on."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.slides.mapping import BAND_ROWS, Band
from stages.tiles.dataset import IGNORE
from store.disk_errors import storage_errors
from store.durable import put_replacing
from store.errors import VerificationError


class BandFolder:
    """The bands of one map, ``height`` × ``width``, in a folder of their own."""

    def __init__(self, folder: Path, height: int, width: int) -> None:
        self.folder, self.height, self.width = folder, height, width
        self.count = -(-height // BAND_ROWS)

    def put(self, band: Band) -> None:
        """Keep a band. Raises :class:`store.errors.StorageError`."""
        buffer = io.BytesIO()
        if band.probabilities is None:
            np.savez_compressed(buffer, labels=band.labels)
        else:
            np.savez_compressed(buffer, labels=band.labels, probabilities=band.probabilities)
        path = self._path(band.top // BAND_ROWS)
        with storage_errors(path):
            put_replacing(path, buffer.getvalue())

    def clear(self) -> None:
        """Remove all bands, the last first, so that those which a crash leaves follow one another."""
        for path in sorted(self.folder.glob("band-*.npz"), reverse=True):
            path.unlink()

    def finished(self) -> int:
        """Return how many bands are there, from the first on without a gap."""
        return next((i for i in range(self.count) if not self._path(i).is_file()), self.count)

    def band(self, number: int) -> Band:
        """Return a band. Raises :class:`store.errors.VerificationError` for one that is lost or damaged."""
        path = self._path(number)
        try:
            with zipfile.ZipFile(path) as archive:
                found = {name: _array(archive.read(name)) for name in archive.namelist()}
            return Band(number * BAND_ROWS, found["labels.npy"], found.get("probabilities.npy"))
        # zipfile, zlib and numpy raise whatever a damaged byte leads to
        except Exception as error:
            raise VerificationError(
                f"A finished part of the map cannot be read ({type(error).__name__}: {error})",
                where=path,
                remedy="Remove this folder and run the command again.",
            ) from error

    def bands(self) -> Iterator[Band]:
        """Yield all bands in order."""
        for number in range(self.count):
            yield self.band(number)

    def labels(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the labels (rows, W) of all bands in order."""
        for band in self.bands():
            yield band.labels

    def sampled(self, factor: int) -> NDArray[np.uint8]:
        """Return every ``factor``-th label of the map, from the middle of the first square of so many on."""
        out = np.full((-(-self.height // factor), -(-self.width // factor)), IGNORE, np.uint8)
        rows = np.minimum(np.arange(out.shape[0]) * factor + factor // 2, self.height - 1)
        columns = np.minimum(np.arange(out.shape[1]) * factor + factor // 2, self.width - 1)
        for band in self.bands():
            here = np.flatnonzero((rows >= band.top) & (rows < band.top + len(band.labels)))
            out[here] = band.labels[rows[here] - band.top][:, columns]
        return out

    def _path(self, number: int) -> Path:
        return self.folder / f"band-{number:05d}.npz"


def _array(data: bytes) -> NDArray[Any]:
    # All of a member is read first: numpy would stop at its last value, before zipfile compares the checksum.
    return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
