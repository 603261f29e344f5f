"""How the workers of a cluster share their machines: the cores by their threads, and a GPU not at all."""

from __future__ import annotations

from collections import defaultdict
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

    Workers that may use the same cores share them in proportion to the threads they were started with.
    """
    threads: defaultdict[tuple[str, tuple[int, ...]], int] = defaultdict(int)
    for one in found.values():
        threads[one.host, one.cores] += one.threads
    return {
        address: max(1, min(one.threads, len(one.cores) * one.threads // threads[one.host, one.cores]))
        for address, one in found.items()
    }


def too_many(found: Mapping[str, Found]) -> dict[str, str]:
    """Return what is wrong with workers for which there is no core left."""
    number: defaultdict[tuple[str, tuple[int, ...]], int] = defaultdict(int)
    faults = {}
    for address, one in found.items():
        number[one.host, one.cores] += 1
        if number[one.host, one.cores] > len(one.cores):
            faults[address] = f"is one worker more than the {len(one.cores)} cores it shares with others"
    return faults


def same_gpu(found: Mapping[str, Found]) -> dict[str, str]:
    """Return what is wrong with workers whose GPU another one before them has."""
    first: dict[tuple[str, str], str] = {}
    faults = {}
    for address, one in found.items():
        if one.gpu and (other := first.setdefault((one.host, one.gpu), address)) != address:
            faults[address] = f"has the GPU that {other} has: start one worker a GPU, by CUDA_VISIBLE_DEVICES"
    return faults
