"""What writers that have ended left behind: temporary files and folders, complete for nobody."""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from store.processes import partial_writer_gone

PARTIAL_MAX_AGE_S = 3600.0
_PARTIAL = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{12}\.partial$")


def abandoned(folder: Path) -> list[Path]:
    """Return the temporary files and folders in ``folder`` whose process has ended or that are older than an hour.

    Raises ``OSError`` for a folder that cannot be listed.
    """
    found = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        written_by = _PARTIAL.search(entry.name)
        if not written_by:
            continue
        with suppress(OSError):
            age = time.time() - entry.stat(follow_symlinks=False).st_mtime
            if age >= PARTIAL_MAX_AGE_S or partial_writer_gone(written_by[1], int(written_by[2])):
                found.append(Path(entry.path))
    return found


def remove_abandoned(path: Path) -> None:
    """Remove a file or folder, whichever it is; nothing happens where it has gone. Raises ``OSError``."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def sweep(folder: Path) -> None:
    """Remove temporary files and folders in ``folder`` whose process has ended or that are older than an hour."""
    # Leftovers harm nobody, so a folder that cannot be listed or written is no reason to stop.
    with suppress(OSError):
        for path in abandoned(folder):
            with suppress(OSError):
                remove_abandoned(path)
