"""Stage one in this process: the views store, then the token grids of one encoder after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch

from pipeline import staging
from pipeline.console import Talk, bytes_text
from pipeline.journal import shard_name
from pipeline.whose import refuse_borrowed, weights_text
from pipeline.workspace import VIEWS, Workspace, slug_of
from stages.batching import Batches, batches_for
from stages.encoders import Identified, canonical_name, download_progress
from stages.extract import extract, write_views
from store import GridReader, GridStore, ShardTask
from store.errors import FrostgridError


class Extraction(Protocol):
    """A way of doing stage one for a study."""

    def masks(self) -> GridStore:
        """Return the views store with every view of the study in it."""

    def tokens(self, reference: str, weights: Path | None, masks: GridReader) -> None:
        """Bring every view into the cache of an encoder, here or at the place where the caches lie."""

    def finish(self) -> None:
        """Raise what went wrong and was put off until all else was done."""


class InProcess:
    """Stage one by this process on ``device``; ``batch`` and ``compile`` as for :func:`pipeline.engine.extract_all`."""

    def __init__(
        self, work: Workspace, talk: Talk, device: torch.device, batch: int | None, compile: bool
    ) -> None:
        self._work, self._talk = work, talk
        self._device, self._batch, self._compile = device, batch, compile
        self._waiting = Waiting(talk)

    def masks(self) -> GridStore:
        """See :class:`Extraction`. Raises what reading the images raises."""
        work, talk = self._work, self._talk
        staging.refuse_unlicensed_place(work, VIEWS, {})
        staging.stage_masks(work, talk)
        masks = work.masks_store(create=True)
        with talk.bar("Drawing views", "views") as update:
            done = write_views(
                work.views,
                work.source,
                masks,
                threads=work.threads,
                on_progress=update,
                on_wait=self._waiting,
                watch=noting(work, masks),
            )
        talk.say(f"views: {done.computed} drawn, {done.kept} kept ({masks.path})")
        staging.send(work, masks, talk)
        return masks

    def tokens(self, reference: str, weights: Path | None, masks: GridReader) -> None:
        """See :class:`Extraction`. Raises as loading the encoder and :func:`stages.extract.extract` do."""
        work, talk = self._work, self._talk
        with talk.bar(f"Loading {canonical_name(reference)}", "bytes") as update, download_progress(update):
            encoder = work.backbones.load(
                reference, weights=weights, device=self._device, dtype=work.dtype, compile=self._compile
            )
        batches = batches_for(encoder, work.study.data.tile_px, self._device, self._batch)
        store = begun(work, encoder, talk)
        there = staging.elsewhere(work, store)
        views = [view for view in work.views if view.key not in there]
        with talk.bar(f"Extracting {encoder.name}", "views", size_text(store, len(views))) as update:
            done = extract(
                views,
                work.source,
                masks,
                batches,
                store,
                threads=work.threads,
                max_int8_error=work.study.cache.max_int8_error,
                on_progress=update,
                on_wait=self._waiting,
                watch=noting(work, store),
            )
        kept = done.kept + len(work.views) - len(views)
        stored = bytes_text(store.status().bytes)
        talk.say(
            f"{encoder.name}: {done.computed} views encoded, {kept} kept, {stored} ({store.path}); {_how(batches)}"
        )
        staging.send(work, store, talk)

    def finish(self) -> None:
        """See :class:`Extraction`; in this process nothing is put off."""


def begun(work: Workspace, encoder: Identified, talk: Talk) -> GridStore:
    """Return the cache of an encoder, made if need be; raises :class:`InputError` where it must not have one."""
    refuse_borrowed(work.cache, encoder, talk)
    staging.refuse_unlicensed_place(work, slug_of(encoder.name), encoder.provenance)
    return work.tokens_store(encoder, create=True)


def size_text(store: GridStore, views: int) -> str:
    """Return what so many views will take, as people read it."""
    return f"{bytes_text(store.spec.stored_nbytes * views)} before compression"


def noting(work: Workspace, store: GridStore) -> Callable[[ShardTask], AbstractContextManager[None]]:
    """Return what notes in the study's journal that a shard of ``store`` is being made, and why it could not be."""

    @contextmanager
    def watch(task: ShardTask) -> Iterator[None]:
        name = shard_name(store, task)
        work.journal.begin("shard", name)
        try:
            yield
        except CancelledError:  # for the sake of another shard
            raise
        except Exception as error:
            known = isinstance(error, FrostgridError)
            work.journal.fail("shard", name, str(error) if known else f"{type(error).__name__}: {error}")
            raise
        finally:
            work.journal.end("shard", name)

    return watch


class Waiting:
    """Says once that another process holds what is left."""

    def __init__(self, talk: Talk) -> None:
        self._talk, self._said = talk, False

    def __call__(self, shards: int) -> None:
        """Say for how many shards, the first time."""
        if not self._said:
            self._said = True
            self._talk.say(
                f"waiting for {shards} shard(s) that another process is writing; if it has died, they are taken over"
            )


def manner(encoder: Identified) -> str:
    """Return in which precision an encoder computes, whether it is compiled, and its weights, as people read it."""
    precision = encoder.identity.get("compute_dtype", "its own precision")
    compiled = ", compiled" if encoder.provenance.get("compiled") else ""
    return f"{precision}{compiled}{weights_text(encoder)}"


def _how(batches: Batches) -> str:
    lowered = f", lowered from {batches.started} for want of memory" if batches.size < batches.started else ""
    return f"batches of {batches.size}{lowered}, {manner(batches.encoder)}"
