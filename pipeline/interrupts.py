"""Ctrl-C: one plain line and the exit status of an interrupt, at whatever moment it comes.

Python raises ``KeyboardInterrupt`` wherever it happens to be. While modules are loaded that is in the middle of
somebody else's code, which may take it for a broken installation, or, called from C++, abort; and before a command
runs nobody is there to catch it. So at those moments the process is ended at once: nothing is open yet that anybody
would have to close, and what was written before is complete or under a temporary name, as after a kill.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

STATUS = 128 + signal.SIGINT
LINE = "Interrupted."


def end(_number: int = signal.SIGINT, _frame: FrameType | None = None) -> None:
    """End the process, saying so; a handler of SIGINT."""
    shown = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar may have hidden the cursor
    try:
        os.write(2, f"{shown}{LINE}\n".encode())
    finally:
        os._exit(STATUS)


def raise_unless_importing(number: int, frame: FrameType | None) -> None:
    """Raise ``KeyboardInterrupt``, but end the process where a module is just being loaded; a handler of SIGINT."""
    above = frame
    while above is not None:
        if above.f_code.co_filename.startswith("<frozen importlib"):
            end()
        above = above.f_back
    raise KeyboardInterrupt


@contextmanager
def ending() -> Iterator[None]:
    """Have an interrupt end the process at once during the block, if Python's own handler is there to be replaced."""
    with _handled_by(end):
        yield


@contextmanager
def raising() -> Iterator[None]:
    """Have an interrupt raise ``KeyboardInterrupt`` in the block again, but not in the middle of an import."""
    with _handled_by(raise_unless_importing):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    # Where somebody else has decided what an interrupt does, or in another thread, everything stays as it is.
    ours = before in (signal.default_int_handler, end) and current_thread() is main_thread()
    if ours:
        signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
