"""The kernels for GPUs compute what the processor's form does; here they run in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from stages.decoders import blur

SCRIPT = """
import torch
from stages.decoders import blur, blur_triton

torch.manual_seed(0)
last = torch.channels_last
kinds = {
    torch.float64: (1e-12, [(1, 1, 1, 1), (2, 3, 2, 9)]),  # a program for each row of 8 columns: few are quick
    torch.float32: (1e-5, [(1, 130, 2, 3)]),
    torch.bfloat16: (2e-2, [(1, 3, 2, 9)]),
}
for dtype, (near, sizes) in kinds.items():
    for batch, channels, h, w in sizes:
        z = torch.randn(batch, channels, h + 3, w + 3).to(dtype).contiguous(memory_format=last)
        bias = torch.randn(channels).to(dtype)
        exact = blur.rectified_blur(z.double(), bias.double())
        found = blur_triton.rectified_blur(z, bias)
        assert found.is_contiguous(memory_format=last) and found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, rtol=near, atol=near)
        assert (found == 0).any() or found.numel() < 50
        into = torch.full((batch + 1, channels, h, w), 9.0, dtype=dtype).contiguous(memory_format=last)
        blur_triton.rectified_blur(z, bias, into[:batch])
        assert torch.equal(into[:batch], found) and (into[batch:] == 9).all()
        grad = torch.randn(batch, channels, h, w).to(dtype).contiguous(memory_format=last)
        dz, _ = blur.blur_gradients(grad.double(), torch.ones_like(grad).double(), torch.float64)
        back = blur_triton.transposed_blur(grad).double()
        torch.testing.assert_close(back, dz, rtol=near, atol=near)
        if dtype == torch.float64:
            blurred = blur.rectified_blur(z, torch.full_like(bias, 100.0)) - 100
            torch.testing.assert_close((grad * blurred).sum(), (back * z).sum())
z = torch.full((1, 2, 4, 4), float("nan")).contiguous(memory_format=last)
assert blur_triton.rectified_blur(z, torch.zeros(2)).isnan().all()
print("kernels agree")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with torch's builds for GPUs only")
def test_the_kernels_for_gpus_agree_with_the_processor() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "kernels agree" in done.stdout


@pytest.fixture
def unknown() -> Iterator[None]:
    blur._fused.cache_clear()
    yield
    blur._fused.cache_clear()


@pytest.mark.usefixtures("unknown")
def test_without_a_compiler_the_convolution_takes_the_kernels_place_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[torch.Size] = []

    def failing(z: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        tried.append(z.shape)
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC.")

    monkeypatch.setitem(sys.modules, "stages.decoders.blur_triton", SimpleNamespace(rectified_blur=failing))
    device = torch.device("cpu")
    with pytest.warns(UserWarning, match=r"\(Failed to find C compiler\.\): torch's convolution") as told:
        assert not blur._fused(device) and not blur._fused(device)
    assert len(told) == 1 and len(tried) == 1


@pytest.mark.usefixtures("unknown")
def test_without_triton_that_is_said_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stages.decoders.blur_triton", None)
    with pytest.warns(UserWarning, match="cannot be compiled"):
        assert not blur._fused(torch.device("cpu"))


@pytest.mark.usefixtures("unknown")
def test_kernels_that_run_are_taken_without_a_word(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    kernels = SimpleNamespace(rectified_blur=lambda z, bias: z)
    monkeypatch.setitem(sys.modules, "stages.decoders.blur_triton", kernels)
    assert blur._fused(torch.device("cpu")) and not recwarn.list
