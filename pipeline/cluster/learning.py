"""Training a run of stage two on a worker: the features of one cache stay there for the runs that come after it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipeline.budget import Budget, budget_for, room_for
from pipeline.cluster.doubts import Doubt
from pipeline.cluster.here import LATE_S, here
from pipeline.loading import Loaded, load
from pipeline.parallel import cores
from pipeline.runs import RunTask
from pipeline.tilesets import TileSet
from stages.decoders import decoder_source
from stages.training.data import Features
from stages.training.memory import available_memory, give_back_memory, keep_large_blocks
from store import GridStore, ViewKey
from store.disk_errors import storage_errors
from store.errors import (
    AccessError,
    FrostgridError,
    InputError,
    MissingViews,
    StorageError,
    VerificationError,
)
from store.places import open_place
from store.sharing import offer_at, pull

COPIES = "pulled"  # the folder of caches in a worker's scratch folder


@dataclass(frozen=True)
class Address:
    """Where workers find the cache of ``key``: at ``path``, which they share, or in this folder of a place, ``url``."""

    key: str
    path: str
    url: str = ""


@dataclass(frozen=True)
class Source:
    """What runs are trained from: the caches of an encoder's features and of the masks.

    ``memory``: bytes that a worker may use; its share of what its machine has where None.
    """

    encoder: str
    tokens: Address
    masks: Address
    memory: int | None = None

    @property
    def name(self) -> str:
        """What a doubt about these caches is about."""
        return f"{self.tokens} {self.masks}"


@dataclass(frozen=True)
class Failed:
    """The answer of a worker on which a run failed as it would on any other: its loss diverged, say."""

    error: FrostgridError


@dataclass(frozen=True)
class _Kept:
    loaded: Loaded
    features: Features


def train(tiles: TileSet, source: Source, task: RunTask) -> dict[str, bytes] | Failed | None:
    """Train a run on this worker, and write its folder, or return its files for the client to write.

    That where the caches lie at a URL, and where this worker cannot write the folder: no run is trained again for that.
    ``tiles`` are loaded once and kept until others, or those of another source, are asked for. A run that is finished
    already is left as it is. What fails in a way that another attempt would not change is the answer; raised is what
    may be otherwise elsewhere: :class:`StorageError`, and :class:`Doubt` where a cache cannot be read here.
    """
    try:
        return _trained(tiles, source, task)
    except StorageError:
        raise
    except FrostgridError as error:
        return Failed(error)


def _trained(tiles: TileSet, source: Source, task: RunTask) -> dict[str, bytes] | None:
    from distributed import get_worker

    to_client = bool(source.tokens.url)
    if not to_client and task.there():
        return None
    _check_decoder(task)
    device = here().device
    budget = budget_for(task.settings, task.geometry, [device], source.memory)
    held = replace(budget, at_once=None)
    try:
        kept = here().kept(
            "features", (source, tiles.key, str(device), held), partial(_load, source, tiles, held)
        )
    except (InputError, VerificationError, AccessError) as error:
        raise Doubt(source.name, error, get_worker().address) from None
    if device.type == "cpu":
        keep_large_blocks()
    task = replace(task, at_once=budget.at_once)
    try:
        files = task.train(kept.loaded, kept.features, device)
    except (VerificationError, AccessError) as error:  # of features that are read while it trains
        raise Doubt(source.name, error, get_worker().address) from None
    if to_client:
        return files
    try:
        task.keep(files)
    except StorageError:
        return files
    return None


def _load(source: Source, tiles: TileSet, budget: Budget) -> _Kept:
    here().drop("encoder", "views")  # of an extraction before
    give_back_memory()
    device, available = here().device, available_memory()
    if source.memory is None:  # workers of one machine share its memory as they share its cores
        available = int(available * min(1.0, here().threads / cores()))
    _make_room([source.tokens, source.masks])
    masks = _opened(source.masks, tiles.mask_view_keys)
    tokens = _opened(source.tokens, tiles.view_keys)
    room = room_for(tokens.spec, masks.spec, tiles.total, device, budget, available=available)
    until = time.monotonic() + LATE_S
    while True:
        try:
            loaded = load(tokens, masks, tiles, device, room, encoder=source.encoder, scratch=here().scratch)
        except MissingViews:  # the client has seen them, and a network disk may show them here later
            if source.tokens.url or time.monotonic() > until:
                raise
            time.sleep(1.0)
        else:
            return _Kept(loaded, loaded.features(device, here().threads))


def _opened(address: Address, views: Sequence[ViewKey]) -> GridStore:
    """Return a cache as this worker reads it: a copy of what is needed, where it lies at a URL."""
    if address.url:
        offer = offer_at(open_place(address.url), address.path)
        store = pull(offer, here().scratch / COPIES, views=views).store
    else:
        store = GridStore.open(Path(address.path))
    if store.key != address.key:
        raise VerificationError(
            f"The cache is another one here, of the key {store.key[:12]}",
            where=store.path,
            remedy="Let workers see the same folders under the same names.",
        )
    return store


def _make_room(needed: Sequence[Address]) -> None:
    """Remove the copies of other caches: a worker that goes from encoder to encoder does not fill its disk."""
    folder = here().scratch / COPIES
    with storage_errors(folder):
        for copy in folder.iterdir() if folder.is_dir() else ():
            if copy.name not in [address.path for address in needed]:
                shutil.rmtree(copy, ignore_errors=True)


def _check_decoder(task: RunTask) -> None:
    if decoder_source(task.settings.decoder) != task.identity["decoder_source"]:
        raise InputError(
            f"The decoder {task.settings.decoder} is another one on this worker",
            where=task.settings.decoder,
            remedy="Install the same version of it there.",
        )
