"""Stage one on a cluster: this process plans, one task a shard goes to the workers, and what fails is told at the end.

A task carries the address of a cache, the number of a shard and where its tiles lie; the worker opens the cache, reads
the images and writes the shard. With a cache at a URL it makes the shard in a folder of its own and sends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline import staging
from pipeline.cluster import extracting
from pipeline.cluster.crew import Crew
from pipeline.cluster.extracting import EncoderOrder, LoadedEncoder
from pipeline.cluster.paths import absolute, file_of, for_workers, some_of_the_data
from pipeline.cluster.shards import Shards, ShardsFailed, Site
from pipeline.cluster.tasks import Task, digest_of
from pipeline.console import Talk, bytes_text
from pipeline.extraction import begun, manner, size_text
from pipeline.parallel import explained
from pipeline.workspace import VIEWS, Workspace
from stages.encoders import canonical_name
from stages.tiles.plan import mask_rows, token_rows
from store import GridReader, GridStore
from store.errors import FrostgridError, StorageError
from store.sharing import push


class OnCluster:
    """Stage one by the workers of ``crew``; see :class:`pipeline.extraction.Extraction`.

    ``references``: the encoders, by canonical name; ``weights``: of those that are to be extracted, the files that the
    user or the study names, None where each worker gets them by itself. Raises :class:`store.errors.InputErrors` where
    a worker does not see the data, the caches or one of these files, and what keeps a worker from getting them.
    """

    def __init__(
        self,
        work: Workspace,
        crew: Crew,
        talk: Talk,
        references: Mapping[str, str],
        weights: Mapping[str, Path | None],
        batch: int | None,
        compile: bool,
    ) -> None:
        self._work, self._crew, self._talk = work, crew, talk
        self._references, self._batch, self._compile = references, batch, compile
        self._site = Site(work, crew, talk, self._check)
        self._unloaded: set[str] = set()
        self._study = for_workers(work.study)
        self._weights = {name: path.absolute() for name, path in weights.items() if path is not None}
        self._unnamed = [name for name, path in weights.items() if path is None]
        self._checked = False
        if weights:  # else no worker may be needed at all
            self._check()

    def masks(self) -> GridStore:
        """See :class:`Extraction`. Raises :class:`ShardsFailed`: without all views nothing can be encoded."""
        work, talk = self._work, self._talk
        staging.refuse_unlicensed_place(work, VIEWS, {})
        staging.stage_masks(work, talk)
        masks = work.masks_store(create=True)
        tiles = {view.tile.mask_key: view.tile for view in work.views}
        with talk.bar("Drawing views", "views") as update:
            shards = Shards(
                self._site, masks, tiles, "views", lambda order: (extracting.draw, (self._study, order))
            )
            done = shards.done(mask_rows(work.views), update)
        talk.say(f"views: {done.computed} drawn, {done.kept} kept ({self._address(masks)})")
        self.finish()
        self._seal(masks)
        # What workers sent to the place: views that are encoded are compared with the hashes in it.
        staging.stage_masks(work, talk)
        return masks

    def tokens(self, reference: str, weights: Path | None, masks: GridReader) -> None:
        """See :class:`Extraction`. An encoder that cannot be loaded and shards that fail are told by :meth:`finish`."""
        work, talk = self._work, self._talk
        name = canonical_name(reference)
        given = self._weights.get(name) or (None if weights is None else weights.absolute())
        order = self._order(reference, given)
        task = Task(f"load-{digest_of(repr(order))}", f"loading {name}", extracting.load, (order,))
        try:
            loaded: LoadedEncoder = self._crew.ask(task)
        except StorageError:
            raise
        except Exception as error:
            self._unloaded.add(task.title)
            self._site.failures.append((task.title, error))
            if trace := explained(task.title, error).trace:
                self._talk.say(f"{task.title}:\n{trace}")
            return
        store = begun(work, loaded, talk)
        tiles = {view.tile.key: view.tile for view in work.views}
        limit = work.study.cache.max_int8_error
        with talk.bar(f"Extracting {name}", "views", size_text(store, len(work.views))) as update:
            shards = Shards(
                self._site, store, tiles, name, lambda shard: (extracting.encode, (order, shard, limit))
            )
            done = shards.done(token_rows(work.views, masks), update)
        stored = "" if work.origin else f", {bytes_text(store.status().bytes)}"
        talk.say(
            f"{name}: {done.computed} views encoded, {done.kept} kept{stored} ({self._address(store)}); "
            f"batches of {loaded.batch}, {manner(loaded)}"
        )
        self._seal(store)

    def finish(self) -> None:
        """See :class:`Extraction`: raises why an encoder could not be loaded, or :class:`ShardsFailed`."""
        failures = self._site.failures
        if len(failures) == 1:
            title, error = failures[0]
            if title in self._unloaded and isinstance(error, FrostgridError):
                raise error
        if failures:
            raise ShardsFailed(failures, self._site.root, stopped=False)

    def _check(self) -> None:
        """Raise what keeps workers from their part, once: what they do not see, and weights that they cannot get."""
        if self._checked:
            return
        work = self._work
        tables = [file for file in map(file_of, self._references.values()) if file is not None]
        self._crew.require(
            folders=[] if work.origin else [work.cache],
            files=[*self._weights.values(), *tables, *some_of_the_data(work)],
            urls=[work.origin.url] if work.origin else [],
        )
        for name in self._unnamed:
            order = self._order(self._references[name], None)
            key = f"check-{digest_of(repr(order))}"
            self._crew.ask(Task(key, f"weights of {name}", extracting.check, (order,)))
        self._checked = True

    def _order(self, reference: str, weights: Path | None) -> EncoderOrder:
        return EncoderOrder(
            self._study,
            absolute(reference),
            None if weights is None else str(weights),
            self._work.dtype,
            self._batch,
            self._compile,
        )

    def _address(self, store: GridStore) -> str:
        return f"{self._site.root}/{store.path.name}"

    def _seal(self, store: GridStore) -> None:
        """Seal the parts that are complete at the place elsewhere, and send what was finished here before."""
        if self._work.origin is not None:
            copied = push(store, self._work.origin, views=self._work.keys_of(store.slug))
            if copied.shards:
                self._talk.say(
                    f"{store.path.name}: {copied.shards} shard(s), {bytes_text(copied.bytes)} that were here already "
                    f"sent to {self._work.origin.url}"
                )
