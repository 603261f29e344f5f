"""How the workers of a cluster share their machines: the cores by their threads, and a GPU not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """What a worker has: its machine's name, the cores it may use, the threads it was started with, and its faults.

    ``gpu`` tells its GPU from all others; "" where it computes on the CPU.
    """

    host: str
    cores: tuple[int, ...]
    threads: int
    gpu: str
    faults: tuple[str, ...]


def shares(found: Mapping[str, Found]) -> dict[str, int]:
    """Return the threads that each worker may use: those it was started with, but not more than its share of the cores.

    Each core of a machine is given to one of the workers that may use it, first one core to each of them, then the
    others in proportion to the threads they were started with. 0 where that leaves a worker none.
    """
    given = dict.fromkeys(found, 0)
    for host in {one.host for one in found.values()}:
        mine = {address: one for address, one in found.items() if one.host == host}
        wanted = Counter(core for one in mine.values() for core in one.cores)  # by how many workers
        hungry = [address for address, one in mine.items() if one.threads]
        while hungry:
            address = min(hungry, key=lambda one: given[one] / mine[one].threads)
            left = [core for core in mine[address].cores if core in wanted]
            if left:
                del wanted[min(left, key=lambda core: wanted[core])]  # rather one that few others can use
                given[address] += 1
            if not left or given[address] == mine[address].threads:
                hungry.remove(address)
    return given


def too_many(found: Mapping[str, Found]) -> dict[str, str]:
    """Return what is wrong with workers for which there is no core left."""
    return {
        address: f"is one worker more than the {len(found[address].cores)} cores it shares with others"
        for address, threads in shares(found).items()
        if not threads
    }


def same_gpu(found: Mapping[str, Found]) -> dict[str, str]:
    """Return what is wrong with workers whose GPU another one before them has."""
    first: dict[tuple[str, str], str] = {}
    faults = {}
    for address, one in found.items():
        if one.gpu and (other := first.setdefault((one.host, one.gpu), address)) != address:
            faults[address] = f"has the GPU that {other} has: start one worker a GPU, by CUDA_VISIBLE_DEVICES"
    return faults
