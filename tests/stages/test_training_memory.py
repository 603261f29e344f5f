"""Where grids are kept, by what a machine, real or made up, has free; and the allocator's setting."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.training.memory import (
    available_memory,
    choose_residency,
    give_back_memory,
    keep_large_blocks,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
GB = 10**9


def machine(root: Path, available: int, groups: str = "", **files: str) -> Path:
    """A file system with /proc and control groups; file names have ``__`` for a slash."""
    contents = {"proc__meminfo": f"MemTotal: 99 kB\nMemAvailable: {available // 1024} kB\n", **files}
    for name, text in {**contents, "proc__self__cgroup": groups}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_half_of_the_available_memory_may_be_taken(tmp_path: Path) -> None:
    root = machine(tmp_path, 10 * GB)
    assert choose_residency(5 * GB - 2048, CPU, root) == "host"
    assert choose_residency(5 * GB + 1, CPU, root) == "stream"


def test_seven_tenths_of_the_free_gpu_memory_may_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = machine(tmp_path, 20 * GB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GB, 80 * GB))
    assert choose_residency(7 * GB, GPU, root) == "device"
    assert choose_residency(7 * GB + 1, GPU, root) == "host"
    assert choose_residency(11 * GB, GPU, root) == "stream"


def test_grids_on_a_gpu_leave_what_a_step_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = machine(tmp_path, 20 * GB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GB, 80 * GB))
    assert choose_residency(4 * GB, GPU, root, step=6 * GB) == "device"
    assert choose_residency(4 * GB + 1, GPU, root, step=6 * GB) == "host"
    assert choose_residency(0, GPU, root, step=11 * GB) == "host"
    assert choose_residency(10 * GB, CPU, root, step=99 * GB) == choose_residency(10 * GB, CPU, root)


def test_a_control_group_of_version_2_is_the_limit_without_its_file_cache(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        100 * GB,
        "0::/job/step\n",
        **{
            "sys__fs__cgroup__job__step__memory.max": "max\n",
            "sys__fs__cgroup__job__step__memory.current": "1\n",
            "sys__fs__cgroup__job__memory.max": f"{8 * GB}\n",
            "sys__fs__cgroup__job__memory.current": f"{5 * GB}\n",
            "sys__fs__cgroup__job__memory.stat": f"anon 7\ninactive_file {2 * GB}\n",
        },
    )
    assert available_memory(root) == 5 * GB


def test_a_control_group_of_version_1_is_the_limit(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        100 * GB,
        "9:name=systemd:/\n4:memory:/box\n1:cpu:/\n0::/\n",
        **{
            "sys__fs__cgroup__memory__box__memory.limit_in_bytes": f"{4 * GB}\n",
            "sys__fs__cgroup__memory__box__memory.usage_in_bytes": f"{1 * GB}\n",
            "sys__fs__cgroup__memory__memory.limit_in_bytes": "9223372036854771712\n",
            "sys__fs__cgroup__memory__memory.usage_in_bytes": f"{50 * GB}\n",
        },
    )
    assert available_memory(root) == 3 * GB


def test_an_exhausted_control_group_leaves_nothing(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        100 * GB,
        "0::/\n",
        **{"sys__fs__cgroup__memory.max": "100\n", "sys__fs__cgroup__memory.current": "200\n"},
    )
    assert available_memory(root) == 0
    assert choose_residency(1, CPU, root) == "stream"


def test_this_machine_has_some_memory() -> None:
    assert 0 < available_memory() < 1 << 50


def test_a_system_without_proc_offers_half_of_its_memory(tmp_path: Path) -> None:
    assert 0 < available_memory(tmp_path) < 1 << 50


FAULTS = """
import resource, torch
from stages.training.memory import keep_large_blocks

def least_faults(rounds):
    found = []
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(64, 1 << 18)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        if found[-1] < 100:
            break
    return min(found)

print(least_faults(4), keep_large_blocks(), least_faults(20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
def test_kept_blocks_are_not_faulted_in_again() -> None:
    command = [sys.executable, "-c", FAULTS]
    before, told, after = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    assert told == "True"
    assert int(after) < 100 < int(before)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert not keep_large_blocks()


FREED = """
import re, torch
from pathlib import Path
from stages.training.memory import give_back_memory, keep_large_blocks

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

keep_large_blocks()
before = resident()
grids, last = torch.ones(64 << 20), torch.ones(1 << 20)  # so that freed memory is not at the end of the heap
del grids
kept = resident()
give_back_memory()
print(before, kept, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
def test_the_freed_grids_of_one_cache_are_given_back_before_the_next_is_weighed() -> None:
    command = [sys.executable, "-c", FREED]
    before, kept, after = map(
        int, subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    )
    assert kept > before + 200 and after < before + 100  # of 256 MiB


def test_giving_back_asks_torch_too_and_another_c_library_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("torch"))
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda name: asked.append("library"))
    give_back_memory()
    assert asked == ["torch"]
