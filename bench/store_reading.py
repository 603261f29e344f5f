"""Reading a cache: single views, and the whole of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from bench.harness import Result, Setting, benchmark, compared, in_turn
from bench.tokens import Grids, grids, write_cache
from store import GridReader, ViewKey

BATCH = 8


@dataclass(frozen=True)
class WrittenCache:
    """A cache on the disk, warm in memory, and what is known of it."""

    made: Grids
    folder: Path
    array: Path
    reader: GridReader
    keys: list[ViewKey]
    ratio: float

    @property
    def about(self) -> str:
        """What was written, for the description of a result."""
        shape = "×".join(map(str, self.made.spec.shape))
        return (
            f"{len(self.keys)} views of {shape} float16 ({self.made.spec.nbytes / 1e6:.1f} MB, {self.made.what}), "
            f"default codec, stored {self.ratio:.2f} times smaller, files in the page cache"
        )


@contextmanager
def written_cache(setting: Setting) -> Iterator[WrittenCache]:
    """Write the grids of ``setting`` as a cache that is gone after the block."""
    with TemporaryDirectory(dir=setting.folder) as name:
        made, folder = grids(setting), Path(name)
        store = write_cache(folder, made)
        reader = store.reader()
        (part,) = store.path.glob("part-*")
        ratio = made.values.nbytes / store.status().bytes
        yield WrittenCache(made, folder, part / made.spec.name, reader, reader.views(), ratio)


@benchmark("store/single-views")
def single_views(setting: Setting) -> Result:
    """Random single views, one thread, against zarr-python on the same files."""
    with written_cache(setting) as written:
        array = zarr.open_array(written.array, mode="r")
        order = np.random.default_rng(0).permutation(len(written.keys))
        out = written.made.spec.empty()

        def ours() -> None:
            for number in order:
                written.reader.read(written.keys[number], out)

        def reference() -> None:
            for number in order:
                array[int(number)]

        samples = in_turn(setting, ours, reference)
        return compared(
            samples,
            f"random single views into one array, one thread: GridReader.read, against array[i] of zarr-python reading "
            f"the same files; seconds for {written.about}",
            ">= 2.5",
            cpu_ratio=samples.cpu_ratio,
            ours_mb_a_s=_rate(written, samples.ours),
        )


@benchmark("store/random-batches")
def random_batches(setting: Setting) -> Result:
    """Batches of random views, as a training step wants them, against zarr-python reading view after view."""
    with written_cache(setting) as written:
        array = zarr.open_array(written.array, mode="r")
        order = np.random.default_rng(0).permutation(len(written.keys))
        batches = [order[start : start + BATCH] for start in range(0, len(order) - BATCH + 1, BATCH)]
        out = np.empty((BATCH, *written.made.spec.shape), np.float16)

        def ours() -> None:
            for batch in batches:
                keys = [written.keys[number] for number in batch]
                written.reader.read_many(keys, out, threads=setting.threads)

        def reference() -> None:
            for batch in batches:
                for number in batch:
                    array[int(number)]

        samples = in_turn(setting, ours, reference)
        return compared(
            samples,
            f"batches of {BATCH} random views into one array: GridReader.read_many with {setting.threads} threads, "
            "against array[i] of zarr-python reading the same files, one view after another; seconds for "
            f"{len(batches)} batches of {written.about}",
            ">= 2.5",
            cpu_ratio=samples.cpu_ratio,
            ours_mb_a_s=len(batches)
            * BATCH
            * written.made.spec.nbytes
            / 1e6
            / float(np.median(samples.ours)),
        )


@benchmark("store/whole-cache")
def whole_cache(setting: Setting) -> Result:
    """All grids into a new host tensor, as training does it, against a memory-mapped copy into another."""
    return _whole(setting, touched=False)


@benchmark("store/whole-cache-touched")
def whole_cache_touched(setting: Setting) -> Result:
    """The same into memory that has been used before, which spares both the system's clearing of it."""
    return _whole(setting, touched=True)


def _whole(setting: Setting, *, touched: bool) -> Result:
    with written_cache(setting) as written:
        shape = (len(written.keys), *written.made.spec.shape)
        kept = torch.zeros(shape, dtype=torch.float16)
        raw = written.folder / "raw"
        written.made.values.tofile(raw)

        def tensor() -> NDArray[np.float16]:
            return (kept if touched else torch.empty(shape, dtype=torch.float16)).numpy()

        def ours() -> None:
            written.reader.read_many(written.keys, tensor(), threads=setting.threads)

        def reference() -> None:
            np.copyto(tensor(), np.memmap(raw, np.float16, "r", shape=shape))

        samples = in_turn(setting, ours, reference)
        where = "memory that was used before" if touched else "a new tensor"
        return compared(
            samples,
            f"all grids into {where}: GridReader.read_many with {setting.threads} threads, against one copy from a "
            f"numpy.memmap of the same values, uncompressed; {written.about}",
            ">= 0.4",
            ours_mb_a_s=_rate(written, samples.ours),
            reference_mb_a_s=_rate(written, samples.reference),
        )


def _rate(written: WrittenCache, seconds: list[float]) -> float:
    return written.made.values.nbytes / 1e6 / float(np.median(seconds))
