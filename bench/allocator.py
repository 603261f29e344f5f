"""How the C library gives back large blocks: as every process starts, or as training sets it."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

from stages.training.memory import keep_large_blocks

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # parameters of mallopt(3)
# Where glibc's own adjustment ends in a process that has freed large blocks, and its other defaults.
_STOCK = ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20), (_TOP_PAD, 128 << 10))


@contextmanager
def allocator(*, kept: bool) -> Iterator[None]:
    """Run the block with large blocks kept for reuse, or given back to the system as a stock process does.

    Without glibc both are the same: nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    if kept:
        keep_large_blocks()
    else:
        library = ctypes.CDLL(None)
        for parameter, value in _STOCK:
            library.mallopt(parameter, value)
        library.malloc_trim(0)
    yield
