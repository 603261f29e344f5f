"""Files that are on the disk when they are closed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from store.durable import sync_file, sync_folder


@contextmanager
def flushed(path: Path) -> Iterator[BinaryIO]:
    """Open ``path`` for writing from nothing; at the end of the block it is flushed to the disk."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Flush every file and folder in ``folder``, and itself."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
