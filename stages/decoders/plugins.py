"""Decoders that installed packages bring along through the entry point group ``frostgrid.decoders``.

The entry point's name is the decoder's name; it points to an object (a module will do) as :class:`DecoderFactory`
describes. What it builds is checked: a seed has to fix its result, and its weights have to be all that is kept of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from stages import plugins as installed
from stages.decoders.geometry import Geometry
from stages.decoders.options import Choice, Option, Whole


class DecoderFactory(Protocol):
    """What an entry point of the group ``frostgrid.decoders`` points to.

    ``OPTIONS`` may be left out where there are none.
    """

    OPTIONS: Mapping[str, Option]

    def build(self, geometry: Geometry, **options: Any) -> nn.Module:
        """Return the module, on torch's default device; its first weights come from torch's global generator.

        It maps tokens (B, width_in, h, w) to logits (B, classes, target_px, target_px).
        """


@dataclass(frozen=True)
class Plugin(installed.Plugin):
    """An installed decoder."""

    group: ClassVar[str] = "frostgrid.decoders"
    kind: ClassVar[str] = "decoder"
    functions: ClassVar[tuple[str, ...]] = ("build",)

    @property
    def options(self) -> Mapping[str, Option]:
        """Its options. Raises ``InputError`` where it cannot be imported or its options are none."""
        said = getattr(self.imported(), "OPTIONS", {})
        if isinstance(said, Mapping) and all(
            isinstance(name, str) and isinstance(option, Whole | Choice) for name, option in said.items()
        ):
            return said
        raise self.fault(
            "has OPTIONS that do not map names to stages.decoders.Whole or stages.decoders.Choice"
        )

    def build(self, geometry: Geometry, **options: Any) -> nn.Module:
        """Return the module, which then checks its own logits. Raises ``InputError`` for one that is refused.

        One that is built on the meta device, where there are shapes and no numbers, is tried there as well.
        """
        factory: DecoderFactory = self.imported()
        module = self.called("build", lambda: factory.build(geometry, **options))
        wrong = _faults(module)
        if wrong:
            raise self.fault(f"cannot be trained: {'; '.join(wrong)}")
        module.register_forward_hook(partial(self._check_logits, geometry))
        if all(weight.is_meta for weight in module.parameters()):
            self.called(
                "forward or backward, tried on torch's meta device, which has shapes and no numbers",
                partial(_try, module, geometry),
            )
        return module

    def _check_logits(self, geometry: Geometry, module: nn.Module, given: Any, logits: Any) -> None:
        wanted = (len(given[0]), geometry.classes, geometry.target_px, geometry.target_px)
        if not isinstance(logits, torch.Tensor) or not logits.is_floating_point():
            raise self.fault(
                f"gave {getattr(logits, 'dtype', type(logits).__name__)}, not a tensor of logits"
            )
        if tuple(logits.shape) != wanted:
            raise self.fault(f"gave logits of {tuple(logits.shape)}, not {wanted}")


def _try(module: nn.Module, geometry: Geometry) -> None:
    tokens = torch.empty(1, geometry.width_in, *geometry.grid, device="meta")
    # What is made on no device in particular is there when the decoder is on another, too.
    with torch.device("cpu"):
        module(tokens).sum().backward()
    module.zero_grad()


def _faults(module: object) -> list[str]:
    """Return what keeps a module from being a decoder whose seed fixes its result."""
    if not isinstance(module, nn.Module):
        return [f"build gave a {type(module).__name__}, not a torch.nn.Module"]
    weights = dict(module.named_parameters(remove_duplicate=False))
    kept = module.state_dict()
    wrong = [] if any(weight.requires_grad for weight in weights.values()) else ["it has nothing to train"]
    wrong += [f"{name} is {w.dtype}, not float32" for name, w in weights.items() if w.dtype != torch.float32]
    if len({id(weight) for weight in weights.values()}) < len(weights):
        wrong.append("two of its weights are one tensor")
    wrong += [f"its buffer {name} is not kept" for name, _ in module.named_buffers() if name not in kept]
    wrong += [
        f"{name} ({type(part).__name__}) draws random numbers that no seed fixes"
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.dropout._DropoutNd | nn.RReLU)
    ]
    wrong += [
        f"{name} ({type(part).__name__}) mixes the tiles of a batch, which is worked on in pieces where memory is short"
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
    ]
    return wrong


@cache
def installed_decoders() -> Mapping[str, Plugin]:
    """Return the installed decoders by name, those with faults too."""
    return Plugin.installed()
