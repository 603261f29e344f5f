"""What a benchmark is, how ours and the reference are measured in turn, and the list of all benchmarks."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from mmap import mmap
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch

from stages.cost import conv_rate, gemm_rate

LIBRARIES = ("numpy", "torch", "zarr", "numcodecs", "google-crc32c")

Run = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """What every benchmark is given: a folder to work in, rounds to measure, and whether to be small.

    ``small`` asks for sizes that only show that the benchmark runs. ``threads`` is what benchmarks that read or write
    in parallel use.
    """

    folder: Path
    rounds: int
    small: bool
    threads: int = 2


@dataclass
class Samples:
    """Seconds of every round, ours and the reference's: by the clock, and of all threads of this process."""

    ours: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    ours_cpu: list[float] = field(default_factory=list)
    reference_cpu: list[float] = field(default_factory=list)

    @property
    def cpu_ratio(self) -> float:
        """Processor seconds of the reference over ours: what others do on the same cores changes it least."""
        return median(self.reference_cpu) / median(self.ours_cpu)


@dataclass(frozen=True)
class Result:
    """One line of the results. ``numbers`` may add anything that helps to judge the ratio."""

    ratio: float
    what: str
    target: str
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the line as it stands in the file, numbers to four digits."""
        line = {"ratio": self.ratio, **self.numbers, "target": self.target, "what": self.what}
        return {name: _rounded(value) for name, value in line.items()}


Benchmark = Callable[[Setting], Result]
BENCHMARKS: dict[str, Benchmark] = {}


def benchmark(name: str) -> Callable[[Benchmark], Benchmark]:
    """Enter a function into the list of benchmarks as ``group/name``; raises ``ValueError`` for a taken name."""

    def enter(function: Benchmark) -> Benchmark:
        if name in BENCHMARKS:
            raise ValueError(f"there are two benchmarks called {name}")
        BENCHMARKS[name] = function
        return function

    return enter


def chosen(only: tuple[str, ...]) -> Iterator[tuple[str, Benchmark]]:
    """Yield the benchmarks whose name is one of ``only`` or lies in a group of ``only``; all if it is empty."""
    for name, function in BENCHMARKS.items():
        if not only or any(name == wanted or name.startswith(f"{wanted}/") for wanted in only):
            yield name, function


def in_turn(setting: Setting, ours: Run, reference: Run, *, settle: bool = False) -> Samples:
    """Run both once to warm up, then ``setting.rounds`` times in turn; who goes first changes every round.

    With ``settle`` each is run once more, unmeasured, whenever its turn comes: for sides that leave the process in
    another state, as that of its allocator, than they would find alone.
    """
    samples = Samples()
    ours()
    reference()
    sides = [(ours, samples.ours, samples.ours_cpu), (reference, samples.reference, samples.reference_cpu)]
    for number in range(setting.rounds):
        for run, clock, cpu in sides if number % 2 == 0 else reversed(sides):
            if settle:
                run()
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            run()
            cpu.append(time.process_time() - cpu_start)
            clock.append(time.perf_counter() - wall_start)
    return samples


def compared(
    samples: Samples,
    what: str,
    target: str,
    *,
    of: Literal["clock", "cpu"] = "clock",
    ratio: Literal["reference/ours", "ours/reference"] = "reference/ours",
    **numbers: Any,
) -> Result:
    """Return the result of two things done in turn: medians, their ratio and how far single rounds strayed from it.

    ``of`` says which seconds are compared. "reference/ours" is how many times faster ours is, "ours/reference" how
    much of the reference's time it takes.
    """
    ours, reference = (
        (samples.ours, samples.reference) if of == "clock" else (samples.ours_cpu, samples.reference_cpu)
    )
    above, below = (reference, ours) if ratio == "reference/ours" else (ours, reference)
    rounds = sorted(up / down for up, down in zip(above, below, strict=True))
    measured = {
        "ours_s": median(ours),
        "reference_s": median(reference),
        "spread": [rounds[0], rounds[-1]],
        "rounds": len(rounds),
        "ours_cpu_s": median(samples.ours_cpu),
        "reference_cpu_s": median(samples.reference_cpu),
    }
    return Result(median(above) / median(below), what, target, {**measured, **numbers})


def machine(setting: Setting) -> dict[str, Any]:
    """Return what the figures depend on besides the code: processor, cores, load, versions, speed of the memory."""
    name = platform.processor() or platform.machine()
    table = Path("/proc/cpuinfo")
    if table.is_file():
        fields = (line.split(":", 1) for line in table.read_text().splitlines() if ":" in line)
        name = next(
            (value.strip() for field_name, value in fields if field_name.strip() == "model name"), name
        )
    return {
        "cpu": name,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": setting.threads,
        "load_at_start": round(os.getloadavg()[0], 2),
        **memory_speed(1 << (22 if setting.small else 28)),
        **product_speed(64 if setting.small else 2048, setting.threads),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
    }


def memory_speed(nbytes: int) -> dict[str, float]:
    """Return how fast one thread copies ``nbytes``, in GB/s: into memory used before, and into memory that is new."""
    source, kept = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)

    def seconds(copy: Run) -> float:
        start = time.perf_counter()
        copy()
        return time.perf_counter() - start

    def into_new() -> None:
        with mmap(-1, nbytes) as new:
            np.copyto(np.frombuffer(new, np.uint8), source)

    touched = median(seconds(lambda: np.copyto(kept, source)) for _ in range(5))
    new = median(seconds(into_new) for _ in range(5))
    return {
        "copy_gb_a_s": round(nbytes / 1e9 / touched, 2),
        "copy_to_new_gb_a_s": round(nbytes / 1e9 / new, 2),
    }


def product_speed(side: int, threads: int) -> dict[str, float]:
    """Return how fast matrix products and convolutions are: 10⁹ FLOP a second by dtype, best of a second each."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rates = {
            f"{kind}_{str(dtype).removeprefix('torch.')}_gflop_a_s": rate(
                torch.device("cpu"), size, 1.0, dtype
            )
            / 1e9
            for kind, rate, size in (("gemm", gemm_rate, side), ("conv", conv_rate, min(side, 256)))
            for dtype in (torch.float32, torch.bfloat16)
        }
    finally:
        torch.set_num_threads(before)
    return {name: round(rate, 1) for name, rate in rates.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return [_rounded(item) for item in value] if isinstance(value, list) else value
