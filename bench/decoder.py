"""The decoder of the paper on the processor: ours against the textbook's module, as written and at its best."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from bench.allocator import set_allocator
from bench.harness import Result, Setting, benchmark, compared, in_turn
from stages.cost import decoder_step_flop
from stages.decoders import Geometry, build_decoder, set_upconv_mode
from stages.decoders.upconv import UpConvMode
from stages.training.loss import LOSSES

WIDTH_IN, CLASSES = 1024, 3


@dataclass(frozen=True)
class Form:
    """One way to compute the same decoder."""

    upconv: UpConvMode
    precision: torch.dtype
    channels_last: bool
    kept: bool  # whether the allocator keeps large blocks

    @property
    def words(self) -> str:
        """What it is, in words."""
        names = {"fast": "frostgrid's operator", "textbook": "torch's interpolate, conv2d and relu"}
        precision = "float32" if self.precision == torch.float32 else "bfloat16 autocast"
        layout = "channels_last" if self.channels_last else "channels first"
        memory = "large blocks kept" if self.kept else "stock allocator"
        return f"{names[self.upconv]}, {precision}, {layout}, {memory}"


TEXTBOOK = Form("textbook", torch.float32, channels_last=False, kept=False)
FAST = Form("fast", torch.float32, channels_last=True, kept=True)
FAST_HALF = Form("fast", torch.bfloat16, channels_last=True, kept=True)
STOCK = Form("textbook", torch.float32, channels_last=True, kept=True)
STOCK_HALF = Form("textbook", torch.bfloat16, channels_last=True, kept=True)


class Work:
    """A decoder in one form with its optimiser and one batch."""

    def __init__(self, form: Form, px: int, batch: int, *, small: bool) -> None:
        torch.manual_seed(0)
        px, options = (64, {"width": 16}) if small else (px, {})
        grid = px // 16
        geometry = Geometry(WIDTH_IN, (grid, grid), px, px, CLASSES)
        self.form = form
        self.decoder = build_decoder("single-scale", geometry, **options)
        set_upconv_mode(self.decoder, form.upconv)
        layout = torch.channels_last if form.channels_last else torch.contiguous_format
        self.decoder.to(memory_format=layout)
        self.tokens = torch.randn(batch, WIDTH_IN, grid, grid).contiguous(memory_format=layout)
        self.truth = torch.randint(0, CLASSES, (batch, px, px), dtype=torch.uint8)
        self.optimiser = torch.optim.NAdam(self.decoder.parameters(), lr=1e-4)
        self.gflop = batch * decoder_step_flop("single-scale", geometry, options) / 1e9

    def _logits(self) -> torch.Tensor:
        half = self.form.precision == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            logits: torch.Tensor = self.decoder(self.tokens)
        return logits

    def step(self) -> None:
        """Take one training step."""
        set_allocator(kept=self.form.kept)
        loss = LOSSES["ce+dice"](self._logits(), self.truth)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def forward(self) -> None:
        """Predict the batch."""
        set_allocator(kept=self.form.kept)
        with torch.inference_mode():
            self._logits()


def _measured(
    setting: Setting,
    ours: Form,
    reference: Form,
    px: int,
    batch: int,
    target: str,
    kind: Literal["step", "forward"],
) -> Result:
    threads = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        fast, slow = (Work(form, px, batch, small=setting.small) for form in (ours, reference))
        runs: list[Callable[[], None]] = [getattr(work, kind) for work in (fast, slow)]
        samples = in_turn(setting, *runs, settle=True)
    finally:
        torch.set_num_threads(threads)
    what = "training step (forward, loss, backward, NAdam)" if kind == "step" else "forward pass"
    return compared(
        samples,
        f"one {what} of the single-scale decoder, D = 256, batch {batch} of {px} px, d = {WIDTH_IN}: {ours.words}, "
        f"against {reference.words}; {setting.threads} threads",
        target,
        textbook_gflop=fast.gflop if kind == "step" else fast.gflop / 3,
    )


_CASES: tuple[tuple[str, Form, int, int, str, Literal["step", "forward"]], ...] = (
    ("step-512", FAST, 512, 1, ">= 3.7", "step"),
    ("step-512-bf16", FAST_HALF, 512, 1, ">= 7", "step"),
    ("step-256", FAST, 256, 2, ">= 3.4", "step"),
    ("step-256-bf16", FAST_HALF, 256, 2, ">= 5.7", "step"),
    ("forward-512", FAST, 512, 1, ">= 3.9", "forward"),
    ("forward-512-bf16", FAST_HALF, 512, 1, ">= 7.5", "forward"),
    # What the textbook's module gains by its layout, its allocator and autocast alone.
    ("stock-512", STOCK, 512, 1, "none", "step"),
    ("stock-512-bf16", STOCK_HALF, 512, 1, "none", "step"),
)
for _name, _form, _px, _batch, _target, _kind in _CASES:
    benchmark(f"decoder/{_name}")(
        partial(_measured, ours=_form, reference=TEXTBOOK, px=_px, batch=_batch, target=_target, kind=_kind)
    )
