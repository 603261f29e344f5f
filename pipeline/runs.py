"""One run of stage two as it is handed to whoever trains it: values only, no stores, no study, no configuration."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.loading import Loaded
from pipeline.tilesets import Selection
from stages.decoders import Geometry
from stages.training.data import Features
from stages.training.device import on_device
from stages.training.record import StoredRun, environment, load_run, put_run, run_files
from stages.training.result import EpochReport
from stages.training.run import train_run
from stages.training.settings import TrainSettings
from store.errors import FrostgridError, InputError, VerificationError
from store.identity import canonical_json, differences

TOLD = ("study", "encoder")  # what a run says of itself for people, and does not depend on


def same_run(run: StoredRun, identity: Mapping[str, Any]) -> StoredRun:
    """Return ``run``, which has to be of this ``identity``: a folder's name holds only the first digits of one.

    Raises :class:`VerificationError` naming the folder and every field that differs.
    """
    wanted = json.loads(canonical_json(identity))
    stored = {name: run.identity.get(name) for name in wanted}
    if fields := [one.field for one in differences(stored, wanted)]:
        raise VerificationError(
            f"The run is of other inputs than its folder's name says: {', '.join(fields)}",
            where=run.folder,
            remedy="Remove it to train again.",
        )
    return run


@dataclass(frozen=True)
class RunTask:
    """A run that is to be trained, and the folder that it is to leave.

    ``title`` is what people call it. ``selection`` says which of the views that were loaded are its data; ``at_once``
    and the rest as for :func:`stages.training.run.train_run`.
    """

    title: str
    settings: TrainSettings
    seed: int
    encoder: str
    classes: tuple[str, ...]
    geometry: Geometry
    selection: Selection
    folder: Path
    identity: Mapping[str, Any]
    at_once: int | None = None

    def perform(
        self,
        loaded: Loaded,
        features: Features,
        device: torch.device,
        on_epoch: Callable[[EpochReport], None],
    ) -> None:
        """Train the run and write its folder; raises as :meth:`train` and :meth:`keep` do."""
        self.keep(self.train(loaded, features, device, on_epoch))

    def train(
        self,
        loaded: Loaded,
        features: Features,
        device: torch.device,
        on_epoch: Callable[[EpochReport], None] | None = None,
    ) -> dict[str, bytes]:
        """Train the run and return the files of its folder. Raises as ``train_run`` does."""
        data = loaded.splits(features, self.selection)
        with on_device(device):
            result = train_run(
                self.settings,
                self.seed,
                data["train"],
                data["val"],
                data["test"],
                encoder=self.encoder,
                classes=self.classes,
                geometry=self.geometry,
                device=device,
                at_once=self.at_once,
                on_epoch=on_epoch,
            )
        about = {
            **environment(device),
            "host": platform.node(),
            "tiles_at_once": self.at_once or self.settings.batch,
        }
        return run_files(result, identity=self.identity, environment=about)

    def keep(self, files: Mapping[str, bytes]) -> None:
        """Write the run's folder, or keep what another process wrote there of the same run meanwhile.

        Raises as ``put_run`` and :func:`same_run` do.
        """
        try:
            put_run(self.folder, files)
        except InputError:
            if not self.there():
                raise

    def there(self) -> bool:
        """Whether the run is finished: by another process, since this one has not done it.

        Raises as ``load_run`` and :func:`same_run` do where the folder holds something else.
        """
        if not self.folder.is_dir():
            return False
        decisive = {name: value for name, value in self.identity.items() if name not in TOLD}
        same_run(load_run(self.folder), decisive)  # same inputs, same result
        return True


@dataclass(frozen=True)
class Failure:
    """A run that could not be finished, and why; ``trace`` where the error is not one that explains itself."""

    title: str
    why: str
    trace: str = ""


class RunsFailed(FrostgridError):
    """Some runs could not be finished; all others are."""

    def __init__(self, failures: Sequence[Failure], failed: int, of: int, folder: Path) -> None:
        self.failures = tuple(failures)
        names = "".join(f"\n  - {failure.title}: {failure.why}" for failure in failures)
        super().__init__(
            f"{failed} of {of} runs failed, the others are finished",
            where=folder,
            remedy="The same command tries them again and keeps what is finished.",
        )
        self.args = (f"{self.args[0]}{names}",)
