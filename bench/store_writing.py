"""Writing a cache: processor time against zarr-python, and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import zarr

from bench.harness import Result, Setting, benchmark, compared, in_turn
from bench.tokens import grids, rows, write_cache
from store import GridStore
from store.layout import array_metadata

SHARD = 16
MEMORY_MB = 64


@benchmark("store/writer-cpu")
def writer_cpu(setting: Setting) -> Result:
    """Processor seconds of writing whole shards, against zarr-python writing the same array."""
    made = grids(setting)
    values, spec = made.values[: 2 * SHARD], made.spec
    made = made._replace(values=values)
    metadata = json.dumps(array_metadata(spec, len(values), SHARD))

    def ours() -> None:
        with TemporaryDirectory(dir=setting.folder) as folder:
            write_cache(Path(folder), made, SHARD)

    def reference() -> None:
        with TemporaryDirectory(dir=setting.folder) as folder:
            Path(folder, "zarr.json").write_text(metadata, encoding="utf-8")
            # Faster than its default, which looks whether chunks are empty.
            array = zarr.open_array(folder, mode="r+", config={"write_empty_chunks": True})
            for start in range(0, len(values), SHARD):
                array[start : start + SHARD] = values[start : start + SHARD]

    return compared(
        in_turn(setting, ours, reference),
        f"processor seconds of writing {len(values)} views of {spec.nbytes / 1e6:.1f} MB ({made.what}) in shards of "
        f"{SHARD}: GridStore.write with its checks, sha256, fsync, markers and manifest, against "
        "whole-shard assignment of zarr-python to an array of the same metadata, which flushes nothing",
        "<= 0.7",
        of="cpu",
        ratio="ours/reference",
    )


@benchmark("store/writer-memory")
def writer_memory(setting: Setting) -> Result:
    """The most memory a process needs to write a shard, beyond what it had and the one view in its hand."""
    grids(setting)  # so that the processes find them made
    rounds = range(min(setting.rounds, 5))
    ours = [_peak_mb(setting, "ours") for _ in rounds]
    reference = [_peak_mb(setting, "zarr") for _ in rounds]
    ratio = max(ours) / MEMORY_MB
    return Result(
        ratio,
        f"peak memory in MB of a process that writes a shard of {SHARD} views (the queue holding one view), above what "
        f"it had with that view in hand, as a share of the {MEMORY_MB} MB that are allowed; beside it that of "
        "zarr-python, which needs the whole shard at once, the shard itself not counted",
        "<= 1",
        {"ours_mb": max(ours), "limit_mb": MEMORY_MB, "zarr_mb": max(reference)},
    )


def _peak_mb(setting: Setting, side: str) -> float:
    """Run one writer in a process of its own and return how far its memory grew, in MB."""
    with TemporaryDirectory(dir=setting.folder) as folder:
        command = [sys.executable, "-m", "bench.store_writing", side, folder, str(int(setting.small))]
        command.append(str(setting.folder))
        done = subprocess.run(
            command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True
        )
    return float(done.stdout)


def _write_and_measure(side: str, folder: Path, setting: Setting) -> float:
    made = grids(setting)
    grid, spec = made.values[0].copy(), made.spec
    del made
    if side == "ours":
        store = GridStore.at(folder, "bench", {"memory": True}, spec, {}, create=True)
        (task,) = store.plan(rows(SHARD), shard_views=SHARD)
        before = _start_measuring()
        store.write(task, ((grid, None) for _ in task.rows))
        return _peak() - before
    (folder / "zarr.json").write_text(json.dumps(array_metadata(spec, SHARD, SHARD)), encoding="utf-8")
    array = zarr.open_array(folder, mode="r+", config={"write_empty_chunks": True})
    shard = np.stack([grid] * SHARD)
    before = _start_measuring()
    array[:] = shard
    return _peak() - before


def _start_measuring() -> float:
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    return _status_mb("VmRSS")


def _peak() -> float:
    return _status_mb("VmHWM")


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    side, folder, small, made_in = sys.argv[1:]
    sys.stdout.write(str(_write_and_measure(side, Path(folder), Setting(Path(made_in), 1, bool(int(small))))))
