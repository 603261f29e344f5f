"""Where token grids can stay while decoders train on them, and how large work arrays are kept."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Literal

import torch

Residency = Literal["device", "host", "stream"]

DEVICE_SHARE, HOST_SHARE = 0.7, 0.5
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # parameters of mallopt(3)
_TOP_PAD = 64 << 20


def choose_residency(
    nbytes: int, device: torch.device, root: Path = Path("/"), *, step: int = 0
) -> Residency:
    """Say where ``nbytes`` of token grids in their stored form are held: "device", "host" or "stream" (batch by batch).

    On a GPU if they take at most 0.7 of its free memory and leave the bytes that a ``step`` takes, else in host memory
    if they take at most 0.5 of what is available there, else nowhere. ``root`` is the root of the file system, for
    :func:`available_memory`.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if nbytes <= min(DEVICE_SHARE * free, free - step):
            return "device"
    return "host" if nbytes <= HOST_SHARE * available_memory(root) else "stream"


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes of host memory that this process can still take.

    The least of the kernel's MemAvailable and what each control group (version 1 or 2) on the way from this process
    to the root still allows: its limit less what it uses, where file cache that can be dropped is not counted as
    used. Without a Linux ``/proc``, half of the physical memory.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines() if ":" in line)
    least = int(fields["MemAvailable"].split()[0]) * 1024
    for folder in _control_groups(root):
        limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            least = min(least, max(0, limit - max(0, used - _droppable(folder))))
    return least


def _control_groups(root: Path) -> list[Path]:
    """Return the memory control groups of this process, from its own up to the root of each hierarchy."""
    table = root / "proc/self/cgroup"
    folders: list[Path] = []
    for line in table.read_text().splitlines() if table.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        own = top / path.strip("/")
        folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(top)]
    return folders


def _number(*files: Path) -> int | None:
    for file in files:
        if file.is_file():
            text = file.read_text().strip()
            return int(text) if text.isdigit() else None
    return None


def _droppable(folder: Path) -> int:
    stat = folder / "memory.stat"
    if not stat.is_file():
        return 0
    fields = dict(line.split(maxsplit=1) for line in stat.read_text().splitlines() if " " in line)
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))


def keep_large_blocks() -> bool:
    """Tell this process's C allocator to keep freed memory for reuse; returns whether it could be told.

    glibc maps every large block anew and gives it back when it is freed, so that each training step faults the same
    gigabytes in again: up to a third of a step on the CPU. The price is that the process keeps its peak memory until
    it ends. It cannot be undone, so it is for the caller to decide, once, before any training.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


def give_back_memory() -> None:
    """Give back what was freed, to the system and to the GPU, so that it counts as available again.

    After :func:`keep_large_blocks` the freed grids of one cache stay with the process, and those of the next would seem
    to have no room. Torch keeps what is freed on a GPU in the same way.
    """
    torch.cuda.empty_cache()  # which does nothing where no GPU was used
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
