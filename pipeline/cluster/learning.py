"""Training a run of stage two on a worker: the features of one cache stay there for the runs that come after it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipeline.cluster.here import LATE_S, here
from pipeline.grouping import pieces
from pipeline.loading import Loaded, Room, load, room_for
from pipeline.parallel import cores
from pipeline.runs import RunTask
from pipeline.tilesets import TileSet
from stages.decoders import decoder_source
from stages.training.data import Features
from stages.training.memory import available_memory, keep_large_blocks
from store import GridStore, ViewKey
from store.disk_errors import storage_errors
from store.errors import FrostgridError, InputError, MissingViews, StorageError, VerificationError
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


@dataclass(frozen=True)
class Unread:
    """The answer of a worker that could not read a cache: no run on it can be trained."""

    error: FrostgridError


@dataclass(frozen=True)
class Failed:
    """The answer of a worker on which a run failed as it would on any other: its loss diverged, say."""

    error: FrostgridError


@dataclass(frozen=True)
class _Kept:
    loaded: Loaded
    features: Features
    room: Room


def train(tiles: TileSet, source: Source, task: RunTask) -> dict[str, bytes] | Unread | Failed | None:
    """Train a run on this worker, and write its folder, or return its files where the caches lie at a URL.

    ``tiles`` are loaded once and kept until others, or those of another source, are asked for. A run that is finished
    already is left as it is. What fails in a way that another attempt would not change is the answer; raised is what
    may be otherwise elsewhere, such as :class:`StorageError`.
    """
    try:
        return _trained(tiles, source, task)
    except StorageError:
        raise
    except FrostgridError as error:
        return Failed(error)


def _trained(tiles: TileSet, source: Source, task: RunTask) -> dict[str, bytes] | Unread | None:
    to_client = bool(source.tokens.url)
    if not to_client and task.there():
        return None
    _check_decoder(task)
    device = here().device
    try:
        kept = here().kept("features", (source, tiles.key, str(device)), partial(_load, source, tiles))
    except (InputError, VerificationError) as error:
        return Unread(error)
    if device.type == "cpu":
        keep_large_blocks()
        if source.memory is not None:
            spec = kept.loaded.tokens.spec
            task = replace(task, at_once=pieces(task, spec, kept.room, source.memory))
    files = task.train(kept.loaded, kept.features, device)
    if to_client:
        return files
    task.keep(files)
    return None


def _load(source: Source, tiles: TileSet) -> _Kept:
    here().drop("encoder", "views")  # of an extraction before
    device, limit = here().device, source.memory
    if limit is None:  # workers of one machine share its memory as they share its cores
        limit = int(available_memory() * min(1.0, here().threads / cores()))
    _make_room([source.tokens, source.masks])
    masks = _opened(source.masks, tiles.mask_view_keys)
    tokens = _opened(source.tokens, tiles.view_keys)
    room = room_for(tokens.spec, masks.spec, tiles.total, device, limit)
    until = time.monotonic() + LATE_S
    while True:
        try:
            loaded = load(
                tokens, masks, tiles, device, encoder=source.encoder, scratch=here().scratch, limit=limit
            )
        except MissingViews:  # the client has seen them, and a network disk may show them here later
            if source.tokens.url or time.monotonic() > until:
                raise
            time.sleep(1.0)
        else:
            return _Kept(loaded, loaded.features(device), room)


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
