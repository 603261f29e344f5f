"""Decoders that installed packages bring along through the entry point group ``frostgrid.decoders``.

The entry point's name is the decoder's name; it points to an object (a module will do) as :class:`DecoderFactory`
describes. What it builds is checked: a seed has to fix its result, and its weights have to be all that is kept of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Protocol

import torch
from torch import nn

from stages.decoders.geometry import Geometry
from stages.decoders.options import Choice, Option, Whole
from store.errors import FrostgridError, InputError

GROUP: Final = "frostgrid.decoders"
_NAME: Final = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*")
_REPAIR: Final = "Repair or uninstall the package that brings it; README.md says what is asked of it."


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
class Plugin:
    """An installed decoder that is imported only when it is used; ``entries`` of several packages are a fault."""

    name: str
    entries: tuple[EntryPoint, ...]

    @property
    def where(self) -> str:
        """The objects that its entry points name."""
        return ", ".join(entry.value for entry in self.entries)

    @property
    def source(self) -> str:
        """The package that brings it, with its version: another version may be another decoder."""
        packages = (entry.dist for entry in self.entries)
        return ", ".join(f"{package.name} {package.version}" for package in packages if package is not None)

    @property
    def options(self) -> Mapping[str, Option]:
        """Its options. Raises ``InputError`` where it cannot be imported or its options are none."""
        said = getattr(self._factory(), "OPTIONS", {})
        if isinstance(said, Mapping) and all(
            isinstance(name, str) and isinstance(option, Whole | Choice) for name, option in said.items()
        ):
            return said
        raise self._fault(
            "has OPTIONS that do not map names to stages.decoders.Whole or stages.decoders.Choice"
        )

    def build(self, geometry: Geometry, **options: Any) -> nn.Module:
        """Return the module, which then checks its own logits. Raises ``InputError`` for one that is refused."""
        factory = self._factory()
        try:
            module = factory.build(geometry, **options)
        except (FrostgridError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise self._fault(f"failed in build: {type(error).__name__}: {error}") from error
        wrong = _faults(module)
        if wrong:
            raise self._fault(f"cannot be trained: {'; '.join(wrong)}")
        module.register_forward_hook(partial(self._check_logits, geometry))
        return module

    def _check_logits(self, geometry: Geometry, module: nn.Module, given: Any, logits: Any) -> None:
        wanted = (len(given[0]), geometry.classes, geometry.target_px, geometry.target_px)
        if not isinstance(logits, torch.Tensor) or not logits.is_floating_point():
            raise self._fault(
                f"gave {getattr(logits, 'dtype', type(logits).__name__)}, not a tensor of logits"
            )
        if tuple(logits.shape) != wanted:
            raise self._fault(f"gave logits of {tuple(logits.shape)}, not {wanted}")

    def _factory(self) -> DecoderFactory:
        if len(self.entries) > 1:
            raise InputError(
                f"{len(self.entries)} installed packages call their decoder {self.name!r}",
                where=self.where,
                remedy="Uninstall one, or rename its entry point.",
            )
        if not _NAME.fullmatch(self.name):
            raise InputError(
                f"an installed package calls its decoder {self.name!r}, which cannot name a folder everywhere",
                where=self.where,
                remedy="Rename its entry point.",
            )
        try:
            factory: DecoderFactory = self.entries[0].load()
        except Exception as error:
            raise self._fault(f"cannot be imported: {type(error).__name__}: {error}") from error
        if not callable(getattr(factory, "build", None)):
            raise self._fault("has no function build")
        return factory

    def _fault(self, what: str) -> InputError:
        return InputError(f"the installed decoder {self.name!r} {what}", where=self.where, remedy=_REPAIR)


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
    found: dict[str, list[EntryPoint]] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        found.setdefault(entry.name, []).append(entry)
    return {name: Plugin(name, tuple(entries)) for name, entries in found.items()}
