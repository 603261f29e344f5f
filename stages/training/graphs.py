"""Steps on a GPU without Python between their kernels: one full batch is recorded, and replayed for every other."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from stages.training.device import on_device
from store.errors import InputError

Backward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Work = Callable[[], list[torch.Tensor]]
Record = Callable[[Work], tuple[list[torch.Tensor], Callable[[], None]]]

WARM = 3  # steps before the recording, in which libraries choose and load their kernels


class RecordedBackward:
    """The forward and backward pass of batches of ``full`` tiles, recorded once.

    Takes the place of ``backward(tokens, truth)``, which adds the gradients of a batch's loss to those of
    ``parameters`` and returns the loss, a scalar; theirs have to be None when this is called, as
    ``optimiser.zero_grad()`` leaves them. Batches of another size, and the first ``WARM``, are handed to ``backward``
    itself. A replay runs the kernels that were recorded, on the same memory, which is kept for as long as this object
    is. ``record`` returns the tensors that work makes, and what computes them (again) in place.
    """

    def __init__(
        self, backward: Backward, parameters: Iterable[torch.Tensor], full: int, record: Record
    ) -> None:
        self._backward, self._parameters = backward, list(parameters)
        self._full, self._record = full, record
        self._warm = 0
        self._tokens = self._truth = self._loss = torch.empty(0)
        self._gradients: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._replay: Callable[[], None] | None = None

    def __call__(self, tokens: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch, (B, d, h, w) float32 and (B, H, W) uint8, and leave its gradients."""
        if len(tokens) != self._full or self._warm < WARM:
            self._warm += len(tokens) == self._full
            return self._backward(tokens, truth)
        if self._replay is None:
            self._replay = self._recorded(tokens, truth)
        self._tokens.copy_(tokens)
        self._truth.copy_(truth)
        self._replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._loss.clone()

    def _recorded(self, tokens: torch.Tensor, truth: torch.Tensor) -> Callable[[], None]:
        self._tokens, self._truth = tokens.clone(), truth.clone()
        reached: list[torch.Tensor] = []

        def work() -> list[torch.Tensor]:
            for parameter in self._parameters:
                parameter.grad = None
            loss = self._backward(self._tokens, self._truth)
            reached[:] = [parameter for parameter in self._parameters if parameter.grad is not None]
            return [loss, *(parameter.grad for parameter in reached if parameter.grad is not None)]

        (self._loss, *gradients), replay = self._record(work)
        self._gradients = list(zip(reached, gradients, strict=True))
        return replay


def cuda_graph(work: Work, device: torch.device) -> tuple[list[torch.Tensor], Callable[[], None]]:
    """Record ``work``, which is done on ``device``, as a CUDA graph, in memory of its own.

    Raises ``InputError`` where it does what a recording cannot hold, such as to look at a value on the GPU.
    """
    with on_device(device):
        torch.cuda.empty_cache()  # what the steps before it took, and it takes once more
        graph = torch.cuda.CUDAGraph()
        # Torch's own stream for recordings is kept from the first of them, on whatever GPU that was.
        stream = torch.cuda.Stream(device)
        try:
            # other threads meanwhile read features into memory that they allocate
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                made = work()
        except RuntimeError as error:
            raise InputError(
                f"the decoder's step cannot be recorded as a CUDA graph: {str(error).splitlines()[0]}",
                where="train.cuda_graphs",
                remedy="Leave cuda_graphs out of the study.",
            ) from error

    def replay() -> None:
        with on_device(device):
            graph.replay()

    return made, replay
