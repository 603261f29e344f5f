"""A feature cache with its views store, and processes that are killed in the middle of handing caches on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import storekit as kit

from store import GridStore, ViewRow, verify

CLASSES = ["background", "gland", "vessel"]
PROVENANCE = {"licence": "Apache-2.0", "host": "test", "note": "µm"}
CHANGES = (
    *("open", "write", "pwrite", "ftruncate", "fsync", "link", "unlink"),
    *("rename", "replace", "mkdir", "rmdir"),
)


def mask_row(row: ViewRow) -> ViewRow:
    """The row of the views store that belongs to a row of the feature cache; its key is another."""
    return ViewRow(kit.tile_key(f"mask of {row.tile}"), row.view, row.name, "")


def place_of(row: ViewRow) -> dict[str, Any]:
    """Tiles lie in a grid of two columns, in two images; a tile pixel spans 2 source pixels."""
    number = int(row.name.rpartition("_")[2])
    line, column = divmod(number // 2, 2)
    centre = [(line + 0.5) * 14, (column + 0.5) * 14]
    return {"image": f"slide {number % 2}", "centre": centre, "step": 2.0, "px": 7}


def mask_meta(row: ViewRow) -> dict[str, Any]:
    return {"pixels": row.pixels, "draw": {"angle": 1.5 * row.view}, "tile": place_of(row)}


def views_store(root: Path) -> GridStore:
    identity = {"classes": CLASSES, "recipe": {"flip": True}, "tile_px": 7}
    return GridStore.at(root, "views", identity, kit.MASKS, {"study": "test"}, create=True)


def draw_masks(store: GridStore, rows: Sequence[ViewRow], meta: Any = mask_meta, salt: str = "") -> None:
    """Store the masks of the rows of a feature cache; another ``salt`` is a correction of all of them."""
    of = {mask_row(row).key: row for row in rows}
    salted = {key._replace(tile=kit.tile_key(key.tile + salt)) if salt else key: of[key] for key in of}
    wanted = [ViewRow(key.tile, key.view, row.name, "") for key, row in salted.items()]
    for task in store.plan(wanted, shard_views=4):
        with store.lease(task) as mine:
            if mine:
                store.write(task, ((kit.grid_of(row, kit.MASKS), meta(salted[row.key])) for row in task.rows))


def expect_masks(store: GridStore, rows: Sequence[ViewRow]) -> None:
    reader = store.reader()
    for row in rows:
        key = mask_row(row).key
        assert reader.read(key).tobytes() == kit.grid_of(mask_row(row), kit.MASKS).tobytes()
        assert reader.meta(key) == mask_meta(row) and reader.row(key).name == row.name


def caches(root: Path, rows: Sequence[ViewRow]) -> tuple[GridStore, GridStore]:
    """A feature cache and its views store under ``root``, complete."""
    tokens = GridStore.at(root, "pixels", kit.IDENTITY, kit.TOKENS, PROVENANCE, create=True)
    kit.fill(tokens, rows)
    masks = views_store(root)
    draw_masks(masks, rows)
    return tokens, masks


def expect_both(root: Path, rows: Sequence[ViewRow]) -> None:
    """Both caches are under ``root``, whole and as they were made, and nothing else is."""
    (tokens,), (masks,) = GridStore.beside(root, "pixels"), GridStore.beside(root, "views")
    kit.expect_all(tokens, rows)
    expect_masks(masks, rows)
    for store in (tokens, masks):
        assert verify(store) == [] and store.status().shards_done == store.status().shards_planned
    assert tokens.provenance == PROVENANCE and masks.provenance == {"study": "test"}
    assert {path.name for path in root.iterdir()} == {tokens.path.name, masks.path.name}
    assert not list(root.rglob("*.partial"))


def expect_killed_imports_are_resumed(
    act: Callable[[Path], object], folder: Path, rows: Sequence[ViewRow], *, stride: int
) -> None:
    """Kill an import into a new root in ``folder`` at every ``stride``-th change; each is taken up where it was."""
    step = resumed = 0
    while killed_at(step := step + stride, lambda: act(folder / str(step))):
        root = folder / str(step)
        begun = [store for slug in ("views", "pixels") for store in GridStore.beside(root, slug)]
        kept = [kit.finished(store) for store in begun]
        resumed += sum(map(len, kept))
        act(root)
        for store, before in zip(begun, kept, strict=True):
            kit.expect_untouched(before, store)
        expect_both(root, rows)
    assert step > 200 and resumed > 5


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a process that is killed just before its ``step``-th change to a disk; whether it was."""

    def change(name: str, left: list[int]) -> Any:
        real = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    def run() -> None:
        left = [step]
        with ExitStack() as patches:
            for name in CHANGES:
                patches.enter_context(mock.patch.object(os, name, change(name, left)))
            work()

    return died(run)


def died(work: Callable[[], object]) -> bool:
    """Run ``work`` in a process of its own and return whether it was killed; it must not fail otherwise."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    assert not os.WIFSIGNALED(status) or os.WTERMSIG(status) == signal.SIGKILL
    return os.WIFSIGNALED(status)


def killing_after(calls: int) -> Callable[[int, int], None]:
    """A progress callback that ends its process the hard way at its ``calls``-th call."""
    left = [calls]

    def on_progress(done: int, total: int) -> None:
        assert 0 <= done <= total
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_progress
