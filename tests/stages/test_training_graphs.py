"""Recorded steps against the steps they stand for; without a GPU the recording is a function that runs again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from gpukit import CurrentGpu
from torch import nn

from stages.decoders import Geometry, UpConvMode, build_decoder, set_upconv_mode
from stages.training.graphs import WARM, RecordedBackward, Work, cuda_graph
from stages.training.loss import LOSSES
from stages.training.run import _reproducible
from stages.training.step import backward
from store.errors import InputError

GEOMETRY = Geometry(8, (8, 8), 128, 128, 3)
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class OnPaper:
    """A recording as a GPU makes it, as far as memory goes: work is done again on what it was first given."""

    def __init__(self) -> None:
        self.replays = 0

    def __call__(self, work: Work) -> tuple[list[torch.Tensor], Callable[[], None]]:
        made = [tensor.clone().fill_(float("nan")) for tensor in work()]

        def replay() -> None:
            self.replays += 1
            for old, new in zip(made, work(), strict=True):
                old.copy_(new)

        return made, replay


def batches(device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return two epochs of four full batches of four tiles and a short one."""
    drawn = torch.Generator().manual_seed(0)
    sizes = [4, 4, 4, 4, 2] * 2
    return [
        (
            torch.randn(size, 8, 8, 8, generator=drawn).to(device, memory_format=torch.channels_last),
            torch.randint(0, 3, (size, 128, 128), generator=drawn, dtype=torch.uint8).to(device),
        )
        for size in sizes
    ]


def trained(device: str, at_once: int, recorded: Callable[[nn.Module, Step], Step]) -> list[torch.Tensor]:
    """Return the losses and the weights after training with what ``recorded`` makes of the backward pass."""
    torch.manual_seed(0)
    decoder = build_decoder("single-scale", GEOMETRY, width=8).to(device)
    decoder.register_parameter("idle", nn.Parameter(torch.ones(3, device=device)))
    optimiser = torch.optim.NAdam(decoder.parameters(), lr=1e-2)
    plain = partial(backward, decoder, LOSSES["ce+dice"], at_once=at_once, precision="float32")
    step, losses = recorded(decoder, plain), []
    for tokens, truth in batches(device):
        optimiser.zero_grad()
        losses.append(step(tokens, truth))
        optimiser.step()
    return [*losses, *decoder.state_dict().values()]


@pytest.mark.parametrize("at_once", [4, 3])
def test_recorded_steps_train_as_the_plain_ones_do(at_once: int) -> None:
    paper = OnPaper()
    plain = trained("cpu", at_once, lambda _, step: step)
    recorded = trained("cpu", at_once, lambda d, step: RecordedBackward(step, d.parameters(), 4, paper))
    assert paper.replays == 8 - WARM
    assert all(torch.equal(one, other) for one, other in zip(plain, recorded, strict=True))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mode", ["fast", "textbook"])
def test_a_step_looks_at_no_value_which_no_recording_could_hold(loss: str, mode: UpConvMode) -> None:
    with torch.device("meta"):  # where there are none
        decoder = build_decoder("single-scale", GEOMETRY, width=8)
        tokens, truth = torch.empty(4, 8, 8, 8), torch.empty(4, 128, 128, dtype=torch.uint8)
    set_upconv_mode(decoder, mode)
    LOSSES[loss](decoder(tokens), truth).backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


@needs_gpu
@pytest.mark.parametrize("at_once", [4, 3])
def test_a_cuda_graph_trains_as_the_plain_steps_do(at_once: int) -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    record = partial(cuda_graph, device=device)
    with _reproducible(device):  # as runs are trained
        plain = trained(str(device), at_once, lambda _, step: step)
        recorded = trained(
            str(device), at_once, lambda d, step: RecordedBackward(step, d.parameters(), 4, record)
        )
    assert all(torch.equal(one, other) for one, other in zip(plain, recorded, strict=True))


@needs_gpu
def test_a_step_that_looks_at_values_cannot_be_recorded() -> None:
    values = torch.ones(3, device="cuda")
    with pytest.raises(InputError, match="cannot be recorded as a CUDA graph"):
        cuda_graph(lambda: [values * values.sum().item()], values.device)


def test_a_recording_is_made_and_replayed_on_the_gpu_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []

    class Graph:
        def replay(self) -> None:
            done.append(("replayed", CurrentGpu.now[-1]))

    @contextmanager
    def graph(kept: Graph, stream: str, capture_error_mode: str) -> Iterator[None]:
        done.append((f"recorded on {stream}, {capture_error_mode}", CurrentGpu.now[-1]))
        yield

    monkeypatch.setattr(torch.cuda, "device", CurrentGpu)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"a stream of {device}")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)

    def work() -> list[torch.Tensor]:
        done.append(("worked", CurrentGpu.now[-1]))
        return [torch.ones(1)]

    made, replay = cuda_graph(work, torch.device("cuda", 2))
    replay()
    assert made[0].item() == 1 and CurrentGpu.now == [0]
    assert done == [("recorded on a stream of cuda:2, thread_local", 2), ("worked", 2), ("replayed", 2)]
