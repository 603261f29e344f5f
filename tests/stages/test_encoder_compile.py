"""torch.compile as an option: the same tokens, recorded, and a clear word where a machine cannot do it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_rows import timm_model, tiny, views, write_row
from safetensors.torch import save_file

from stages.encoders import Encoder, load_encoder
from store.errors import InputError


def loaded(folder: Path, **options: Any) -> Encoder:
    save_file(timm_model(tiny()).state_dict(), folder / "tiny.safetensors")
    return load_encoder(write_row(folder, tiny()), tile_px=32, weights=folder / "tiny.safetensors", **options)


def test_a_compiled_encoder_gives_the_same_tokens_and_says_so_outside_its_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as always, but run without the C++ compiler, which takes a minute; see the slow test."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, compiled = loaded(tmp_path), loaded(tmp_path, compile=True)
    for count in (2, 3, 1):
        images = views(count, 32, seed=count)
        torch.testing.assert_close(compiled.encode(images), plain.encode(images), rtol=1e-5, atol=1e-5)
    assert compiled.identity == plain.identity
    assert compiled.provenance == {**plain.provenance, "compiled": True}
    assert "compiled" not in plain.provenance


@pytest.mark.slow
def test_the_real_compiler_gives_the_same_tokens(tmp_path: Path) -> None:
    plain, compiled = loaded(tmp_path), loaded(tmp_path, compile=True)
    for count in (4, 3):
        images = views(count, 32)
        torch.testing.assert_close(compiled.encode(images), plain.encode(images), rtol=1e-4, atol=1e-4)


def test_a_machine_that_cannot_compile_is_told_to_leave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=no_compiler))
    encoder = loaded(tmp_path, compile=True)
    with pytest.raises(InputError) as caught:
        encoder.encode(views(1, 32))
    assert "torch.compile cannot translate tiny on this machine" in str(caught.value)
    assert "Leave --compile out" in str(caught.value.remedy)


def test_memory_that_runs_out_in_the_compiler_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(graph: Any, inputs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=too_large))
    with pytest.raises(RuntimeError, match="out of memory"):
        loaded(tmp_path, compile=True).encode(views(1, 32))


def test_encoders_without_a_network_are_left_as_they_are() -> None:
    assert "compiled" not in load_encoder("stain", tile_px=32, compile=True).provenance
