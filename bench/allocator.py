"""How the C library gives back large blocks: as every process starts, or as training sets it."""

from __future__ import annotations

import ctypes
import platform

from stages.training.memory import keep_large_blocks

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # parameters of mallopt(3)
# Where glibc's own adjustment ends in a process that has freed large blocks, and its other defaults.
_STOCK = ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20), (_TOP_PAD, 128 << 10))


_kept: bool | None = None  # as it was set last; None for as this process started


def set_allocator(*, kept: bool) -> None:
    """Have large blocks kept for reuse from now on, or given back to the system as a stock process does.

    Where that changes, it costs what a stock process never pays, such as to give back all that was kept: call it where
    nothing is measured, or change it in a run that is not (``settle`` of :func:`bench.harness.in_turn`). Without glibc
    both are the same: nothing is changed.
    """
    global _kept
    if kept == _kept or platform.libc_ver()[0] != "glibc":
        return
    _kept = kept
    if kept:
        keep_large_blocks()
        return
    library = ctypes.CDLL(None)
    for parameter, value in _STOCK:
        library.mallopt(parameter, value)
    library.malloc_trim(0)
