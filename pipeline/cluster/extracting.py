"""Stage one on a worker: the tasks that load an encoder and make single shards. What they are given are values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray

from pipeline.backbones import Backbones
from pipeline.cluster.here import here, seen
from pipeline.study import Study
from pipeline.study_data import dataset_of, recipe_of
from stages.batching import Batches, batches_for
from stages.encoders import AskedDtype, TokenGrid
from stages.extract import extract_shard, write_views_shard
from stages.tiles.plan import ViewSource
from stages.tiles.tiling import Tile
from store import GridStore, ShardTask
from store.errors import IdentityMismatch
from store.identity import differences
from store.int8 import MAX_ERROR
from store.leases import Holder
from store.places import open_place
from store.sharing.workshop import Workshop


@dataclass(frozen=True)
class EncoderOrder:
    """An encoder as a worker is to load it.

    ``study``: as JSON, of which only data, views and encoders count. ``reference`` and ``weights`` name files by their
    absolute paths; ``batch`` and ``compile`` as for :func:`pipeline.engine.extract_all`.
    """

    study: str
    reference: str
    weights: str | None
    dtype: AskedDtype
    batch: int | None
    compile: bool


@dataclass(frozen=True)
class LoadedEncoder:
    """What a worker tells of an encoder that it has loaded: see :class:`stages.encoders.Identified`.

    ``batch`` is the number of views that it encodes at a time.
    """

    name: str
    grid: TokenGrid
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]
    batch: int


@dataclass(frozen=True)
class ShardOrder:
    """A shard that is to be made.

    ``root`` and ``folder``: where its cache lies, a folder or URL and a name in it. ``part`` and ``shard``: which shard
    it is. ``tiles``: those of its views. ``cluster``: which one the worker belongs to, for its claim on the shard;
    ``gone``: the tokens of claims that do not count any more, see :func:`store.leases.hold`.
    """

    root: str
    folder: str
    part: str
    shard: int
    tiles: tuple[Tile, ...]
    cluster: str
    gone: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """What became of a shard: ``views`` computed now, or it was ``there`` already, or ``holder`` is at it.

    None of the three where somebody has just given it up.
    """

    views: int
    there: bool = False
    holder: Holder | None = None


def check(order: EncoderOrder) -> None:
    """Raise what keeps this worker from having an encoder's weights, as far as that shows without loading them."""
    backbones = Backbones(_study(order.study))
    file = backbones.check_weights(order.reference, None if order.weights is None else Path(order.weights))
    if file is None and (refused := backbones.refusal(order.reference)):
        raise refused


def load(order: EncoderOrder) -> LoadedEncoder:
    """Load an encoder, which this worker keeps for the shards that come. Raises as ``load_encoder`` does."""
    batches = _batches(order)
    found = batches.encoder
    return LoadedEncoder(found.name, found.grid, dict(found.identity), dict(found.provenance), batches.size)


def draw(study: str, order: ShardOrder) -> Made:
    """Make a shard of the views store of a study (as JSON). Raises what reading the images raises."""
    shelf = _Claiming(order)
    tiles = {tile.mask_key: tile for tile in order.tiles}
    mine = write_views_shard(shelf.task, tiles, _source(study), shelf, threads=here().threads)
    return shelf.made(mine)


def encode(order: EncoderOrder, shard: ShardOrder, max_int8_error: float) -> Made:
    """Make a shard of a feature cache. Raises as :func:`stages.extract.extract` and :func:`load` do.

    And :class:`IdentityMismatch` where the encoder that this worker loads is not the one that the cache is of.
    """
    shelf = _Claiming(shard)
    batches = _batches(order)
    refuse_other(batches, shelf.store)
    mine = extract_shard(
        shelf.task,
        {tile.key: tile for tile in shard.tiles},
        _source(order.study),
        batches,
        shelf,
        threads=here().threads,
        max_int8_error=max_int8_error,
    )
    return shelf.made(mine)


def refuse_other(batches: Batches, store: GridStore) -> None:
    """Raise :class:`IdentityMismatch` unless ``batches`` are encoded by the encoder that the cache is of."""
    wanted = cast(Mapping[str, Any], store.identity["encoder"])
    found = [str(one) for one in differences(wanted, dict(batches.encoder.identity))]
    if found:
        raise IdentityMismatch(
            f"The encoder that this worker loads is another than that of the cache: {'; '.join(found)}",
            where=store.path.name,
            remedy="Give all workers the same weights and devices of one kind, or say which with --weights, --dtype "
            "and --device.",
        )


class _Claiming:
    """The cache of a shard, in which this worker claims it with its own name; a :class:`stages.extract.Shelf`."""

    def __init__(self, order: ShardOrder) -> None:
        from distributed import get_worker

        self._shelf: GridStore | Workshop = here().kept(
            "cache", (order.root, order.folder), lambda: _opened(order)
        )
        if isinstance(self._shelf, GridStore):
            _await(self._shelf.path / order.part / "part.json")
        self._about = {"cluster": order.cluster, "worker": get_worker().address}
        self._gone = order.gone
        self.task = self._shelf.task(order.part, order.shard)

    @property
    def store(self) -> GridStore:
        """What describes the cache."""
        return self._shelf if isinstance(self._shelf, GridStore) else self._shelf.store

    def lease(self, task: ShardTask) -> AbstractContextManager[bool]:
        return self._shelf.lease(task, about=self._about, gone=self._gone)

    def write(
        self,
        task: ShardTask,
        grids: Iterable[tuple[NDArray[Any], Mapping[str, Any] | None]],
        *,
        max_error: float = MAX_ERROR,
    ) -> None:
        self._shelf.write(task, grids, max_error=max_error)

    def made(self, mine: bool) -> Made:
        """Return what became of the shard, ``mine`` saying whether it was this worker that made it."""
        if mine:
            return Made(len(self.task.rows))
        there = isinstance(self._shelf, Workshop) and self._shelf.lies_there(self.task)
        return Made(0, there, None if there else self._shelf.holder(self.task))


def _opened(order: ShardOrder) -> GridStore | Workshop:
    if "://" in order.root:
        return Workshop(open_place(order.root), order.folder, here().scratch / "making")
    path = Path(order.root, order.folder)
    _await(path / "cache.json")
    return GridStore.open(path)


def _await(file: Path) -> None:
    """Wait for a file that the client has written; without it the store says what is wrong."""
    seen(file.is_file)


def _source(study: str) -> ViewSource:
    found = _study(study)
    return here().kept("views", study, lambda: ViewSource(dataset_of(found), recipe_of(found)))


def _batches(order: EncoderOrder) -> Batches:
    device = here().device

    def make() -> Batches:
        here().drop("features", "common")  # of a training before
        study = _study(order.study)
        encoder = Backbones(study).load(
            order.reference,
            weights=None if order.weights is None else Path(order.weights),
            device=device,
            dtype=order.dtype,
            compile=order.compile,
        )
        return batches_for(encoder, study.data.tile_px, device, order.batch)

    return here().kept("encoder", (order, str(device)), make)


def _study(text: str) -> Study:
    return Study.model_validate_json(text)
