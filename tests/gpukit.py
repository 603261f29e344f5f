"""What stands in for a GPU in tests on machines without one."""

from __future__ import annotations

import torch


class CurrentGpu:
    """Takes the place of ``torch.cuda.device``; the last of ``now`` is the index of the current GPU."""

    now: list[int] = [0]  # noqa: RUF012

    def __init__(self, device: torch.device) -> None:
        self.index = device.index

    def __enter__(self) -> None:
        self.now.append(self.index)

    def __exit__(self, *_: object) -> None:
        self.now.pop()
