"""Making the workers of a cluster ready: do they see what they need, and how much of their machine is theirs?

A worker that was made ready offers one of the resource ``frostgrid``, which every task takes: so a process runs one at
a time, whatever else the cluster does. Which workers were made ready for a command only its own process knows.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from pipeline.cluster.line import RESOURCE
from pipeline.cluster.machines import Found, same_gpu, shares, too_many
from store.disk_errors import storage_errors
from store.errors import FrostgridError, InputError

if TYPE_CHECKING:
    from distributed import Client, Worker

T = TypeVar("T")
VERSION = version("frostgrid")  # of the code that runs here, whatever is installed meanwhile
OLD_S = 7 * 24 * 3600.0  # after which a probe is one that a killed process has left
_PROBE = ".frostgrid-probe-"
_ASK = "Correct this, or take the worker out of the cluster."
ANSWER_S = 300.0  # that a worker may take to say what it has; it may have torch to load first
AGAIN_S = 300.0  # after which one that does not answer is asked again


@dataclass(frozen=True)
class Needs:
    """What a worker has to have.

    ``folders``: each with the name and the content of a file in it. ``files``: each with its size, 0 for a folder.
    ``urls``: places. ``device``: as ``--device`` says it. ``patience``: seconds in which to answer. ``version``: of
    frostgrid. ``session``: the command.
    """

    folders: tuple[tuple[str, str, str], ...] = ()
    files: tuple[tuple[str, int], ...] = ()
    urls: tuple[str, ...] = ()
    device: str | None = None
    patience: float = ANSWER_S
    version: str = VERSION
    session: str = field(default_factory=lambda: uuid4().hex[:12])


@dataclass(frozen=True)
class Unfit:
    """Why a worker cannot be made ready, in sentences; ``crowded``: because of others, which may go.

    ``until``: when it is to be asked again, by the monotonic clock.
    """

    faults: tuple[str, ...]
    crowded: bool = False
    until: float = math.inf


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
                _sweep(folder)
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
) -> dict[str, Unfit]:
    """Make workers ready that have what is needed, and return what is wrong with the others, by address.

    ``known``: the workers that are ready already, to which the new ones are added; all share their machines anew.
    """
    faults: dict[str, list[str]] = {}
    silent: set[str] = set()
    before = set(known)
    for address, answer in _answers(client, look, needs, addresses).items():
        if isinstance(answer, OSError):  # of the connection, or because it took too long
            silent.add(address)
        elif isinstance(answer, Found):
            known[address] = answer
            if answer.faults:
                faults[address] = [f"{answer.host} ({address}) {fault}" for fault in answer.faults]
        else:
            faults[address] = [f"{address} cannot run frostgrid: {type(answer).__name__}: {answer}"]
    fit = {address: one for address, one in known.items() if address not in faults}
    crowded = same_gpu(fit) | too_many(fit)
    for address, why in crowded.items():
        faults[address] = [f"{known[address].host} ({address}) {why}"]
    _forget(known, faults)
    for address, answer in _answers(client, ready, (needs, shares(known)), list(known)).items():
        if isinstance(answer, OSError):
            silent |= {address} - before  # one that was made ready has what it needs
        elif answer is not None:
            faults[address] = [f"{address} cannot be made ready: {answer}"]
    _forget(known, silent | faults.keys())
    unfit = {
        address: Unfit(tuple(f"{fault}. {_ASK}" for fault in some), address in crowded)
        for address, some in faults.items()
    }
    until = time.monotonic() + AGAIN_S
    return unfit | {
        address: Unfit(
            (f"{address} does not answer: a disk or a network may hang there. {_ASK}",), until=until
        )
        for address in silent
    }


def _answers(
    client: Client, question: Callable[..., Any], what: Any, addresses: Sequence[str]
) -> dict[str, Any]:
    """Return what workers answer, exceptions included, but for those that have gone meanwhile."""
    if not addresses:
        return {}
    answers: dict[str, Any] = client.run(question, what, workers=list(addresses), on_error="return")
    there = client.nthreads()
    return {address: answer for address, answer in answers.items() if address in there}


def _forget(known: dict[str, Found], addresses: Iterable[str]) -> None:
    for address in addresses:
        known.pop(address, None)


async def look(needs: Needs, dask_worker: Worker) -> Found:
    """Return what the worker has that runs this. ``TimeoutError`` where that cannot be said in time."""
    return await _told(needs.patience, _look, needs, dask_worker.state.nthreads)


async def _told(patience: float, question: Callable[..., T], *what: Any) -> T:
    """Return ``question(*what)``, asked in a thread; ``TimeoutError`` after ``patience`` seconds."""
    try:
        return await asyncio.wait_for(asyncio.to_thread(question, *what), patience)
    except TimeoutError:
        raise
    except OSError as error:
        # Of this machine: an OSError that the client meets instead of an answer is of the connection.
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _look(needs: Needs, threads: int) -> Found:
    import torch

    from pipeline.cluster.here import seen
    from pipeline.parallel import core_numbers
    from stages.encoders import usable_device
    from store.places import open_place
    from store.processes import Process

    faults = []
    if needs.version != VERSION:
        faults.append(
            f"runs frostgrid {VERSION}, and this is {needs.version}: install the same, and start it again"
        )
    probes = [(Path(folder, name), text) for folder, name, text in needs.folders]
    seen(lambda: all(_holds(file, text) for file, text in probes))  # waited for once for all of them
    for probe, text in probes:
        if not _holds(probe, text):
            faults.append(f"does not see the folder {probe.parent}: mount it there under the same name")
        elif not os.access(probe.parent, os.W_OK):
            faults.append(f"may not write to the folder {probe.parent}: give it the right")
    for file, size in needs.files:
        if _size_there(Path(file)) != size:
            faults.append(
                f"does not see {file}, or another file of this name: put it where every worker sees it"
            )
    gpu = ""
    try:
        device = usable_device(needs.device)
        if device.type == "cuda":
            gpu = str(torch.cuda.get_device_properties(device).uuid)  # jobs may each call theirs number 0
    except FrostgridError as fault:
        faults.append(f"has no such device: {fault.what}")
    for url in needs.urls:
        try:
            open_place(url).folders()
        except FrostgridError as fault:
            faults.append(f"does not reach {url}: {fault}")
    return Found(Process.current().host, core_numbers(), threads, gpu, tuple(faults))


async def ready(what: tuple[Needs, Mapping[str, int]], dask_worker: Worker) -> None:
    """Make the worker that runs this one that takes tasks of the command."""
    from pipeline.cluster.here import make_ready

    needs, threads = what
    scratch = Path(dask_worker.local_directory, "frostgrid")
    await _told(needs.patience, make_ready, threads[dask_worker.address], scratch, needs.session)
    await dask_worker.set_resources(**{RESOURCE: 1})


def _sweep(folder: Path) -> None:
    for probe in folder.glob(f"{_PROBE}*"):
        with suppress(FileNotFoundError):  # of a process that has just ended
            if time.time() - probe.stat().st_mtime > OLD_S:
                probe.unlink()


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


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except OSError:
        return False
