"""How large files are, as far as there are any."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def file_size(path: Path) -> int | None:
    """Return the size of a file in bytes, or ``None`` where there is no plain file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the size of every file in a folder by its name; what cannot be listed or has just gone is left out."""
    sizes = {}
    with suppress(OSError):
        for entry in os.scandir(folder):
            with suppress(OSError):
                if entry.is_file():
                    sizes[entry.name] = entry.stat().st_size
    return sizes
