"""Making the workers of a cluster ready: do they see what they need, and how much of their machine is theirs?

A worker that was made ready offers one of the resource ``frostgrid``. Every task of ours takes it, so that a process
runs one at a time, whatever else the cluster does, and none runs on a worker that cannot see the caches.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from store.durable import storage_errors
from store.errors import FrostgridError, InputError

if TYPE_CHECKING:
    from distributed import Client, Worker

RESOURCE = "frostgrid"
_PROBE = ".frostgrid-probe-"


@dataclass(frozen=True)
class Needs:
    """What a worker has to have.

    ``folders``: each with the name and the content of a file in it. ``files``: each with its size, 0 for a folder.
    ``urls``: places. ``device``: as ``--device`` says it. ``version``: of frostgrid.
    """

    folders: tuple[tuple[str, str, str], ...] = ()
    files: tuple[tuple[str, int], ...] = ()
    urls: tuple[str, ...] = ()
    device: str | None = None
    version: str = field(default_factory=lambda: version("frostgrid"))


@dataclass(frozen=True)
class Found:
    """What a worker has: its machine's name, the cores and threads it may use, its GPU ("" for none), its faults."""

    host: str
    cores: int
    threads: int
    gpu: str
    faults: tuple[str, ...]


@contextmanager
def probed(
    folders: Sequence[Path], files: Sequence[Path], urls: Sequence[str], device: str | None
) -> Iterator[Needs]:
    """Yield the needs of workers that have to see all this, with a file of this process in each folder meanwhile.

    Raises :class:`store.errors.StorageError` for a folder that this process cannot write to, :class:`InputError` for
    a file that is not there.
    """
    probes: list[tuple[Path, str]] = []
    try:
        for folder in dict.fromkeys(folder.absolute() for folder in folders):
            file, text = folder / f"{_PROBE}{uuid4().hex}", uuid4().hex
            with storage_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
            probes.append((file, text))
        yield Needs(
            tuple((str(file.parent), file.name, text) for file, text in probes),
            tuple((str(file.absolute()), _size(file)) for file in files),
            tuple(urls),
            device,
        )
    finally:
        for file, _ in probes:
            with suppress(OSError):
                file.unlink(missing_ok=True)


def equip(
    client: Client, addresses: Sequence[str], needs: Needs, known: dict[str, Found]
) -> dict[str, list[str]]:
    """Make workers ready that have what is needed, and return what is wrong with the others, by address.

    ``known``: the workers that are ready already, to which the new ones are added; all share their machines anew.
    """
    answers = client.run(look, needs, workers=list(addresses), on_error="return")
    faults: dict[str, list[str]] = {}
    for address, answer in answers.items():
        if isinstance(answer, Found):
            known[address] = answer
            if answer.faults:
                faults[address] = [f"{answer.host} ({address}) {fault}" for fault in answer.faults]
        elif not isinstance(
            answer, (OSError, asyncio.TimeoutError)
        ):  # one that has gone meanwhile needs nothing
            faults[address] = [f"{address} cannot run frostgrid: {type(answer).__name__}: {answer}"]
    for address, other in _same_gpu({a: f for a, f in known.items() if a not in faults}).items():
        faults[address] = [
            f"{known[address].host} ({address}) has the GPU that {other} has: start one worker a GPU, each with "
            "CUDA_VISIBLE_DEVICES of its own"
        ]
    for address in faults:
        known.pop(address, None)
    if known:
        client.run(ready, shares(known), workers=list(known), on_error="return")
    return faults


def shares(found: Mapping[str, Found]) -> dict[str, int]:
    """Return the threads that each worker may use: those it was started with, but not more than its share of the cores.

    Workers of one machine share its cores in proportion to the threads they were started with.
    """
    threads: defaultdict[str, int] = defaultdict(int)
    for one in found.values():
        threads[one.host] += one.threads
    return {
        address: max(1, min(one.threads, one.cores * one.threads // threads[one.host]))
        for address, one in found.items()
    }


def _same_gpu(found: Mapping[str, Found]) -> dict[str, str]:
    """Return the workers whose GPU another one before them has, each with the other."""
    first: dict[tuple[str, str], str] = {}
    taken = {}
    for address, one in found.items():
        if one.gpu and first.setdefault((one.host, one.gpu), address) != address:
            taken[address] = first[one.host, one.gpu]
    return taken


async def look(needs: Needs, dask_worker: Worker) -> Found:
    """Return what the worker has that runs this."""
    return await asyncio.to_thread(_look, needs, dask_worker.state.nthreads)


def _look(needs: Needs, threads: int) -> Found:
    import torch

    from pipeline.cluster.here import device_here
    from pipeline.parallel import cores
    from store.places import open_place
    from store.processes import Process

    faults = []
    if (mine := version("frostgrid")) != needs.version:
        faults.append(f"runs frostgrid {mine}, and this is {needs.version}: install the same there")
    for folder, name, text in needs.folders:
        if _content(Path(folder, name)) != text:
            faults.append(f"does not see the folder {folder}: mount it there under the same name")
        elif not os.access(folder, os.W_OK):
            faults.append(f"may not write to the folder {folder}: give it the right")
    for file, size in needs.files:
        if _size_there(Path(file)) != size:
            faults.append(
                f"does not see {file}, or another file of this name: put it where every worker sees it"
            )
    gpu = ""
    try:
        device = device_here(needs.device)
        if device.type == "cuda":
            gpu = (
                f"{os.environ.get('CUDA_VISIBLE_DEVICES', '')}:{device.index or torch.cuda.current_device()}"
            )
    except FrostgridError as fault:
        faults.append(f"has no such device: {fault.what}")
    for url in needs.urls:
        try:
            open_place(url).folders()
        except FrostgridError as fault:
            faults.append(f"does not reach {url}: {fault}")
    return Found(Process.current().host, cores(), threads, gpu, tuple(faults))


async def ready(threads: Mapping[str, int], dask_worker: Worker) -> None:
    """Make the worker that runs this one that takes tasks of ours."""
    from pipeline.cluster.here import make_ready

    scratch = Path(
        dask_worker.local_directory, f"frostgrid-{hashlib.sha256(dask_worker.id.encode()).hexdigest()[:12]}"
    )
    await asyncio.to_thread(make_ready, threads[dask_worker.address], scratch)
    await dask_worker.set_resources(**{RESOURCE: 1})


def _size(file: Path) -> int:
    """Return the size of a file; 0 for a folder, whose size differs from machine to machine."""
    try:
        return 0 if file.is_dir() else file.stat().st_size
    except OSError as error:
        raise InputError(
            f"The file cannot be read: {error.strerror}", where=file, remedy="Give one that is there."
        ) from None


def _size_there(file: Path) -> int:
    try:
        return _size(file)
    except InputError:
        return -1


def _content(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None
