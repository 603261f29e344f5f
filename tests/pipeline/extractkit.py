"""Extraction on real clusters: an encoder that leaves a line for every view it encodes, and looks at what was made."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from packagekit import Packages
from studykit import write_study

from pipeline import engine
from pipeline.cluster.connecting import connected
from pipeline.console import Talk
from pipeline.study import read_study
from store import GridStore, verify

COUNTED = """
import os
import time
from pathlib import Path

import torch
from stages.encoders import Description, TokenGrid
from stages.tiles.views import view_sha256

GRID = TokenGrid(3, 4, 4)

def allowed(folder):
    limit = folder / "limit"
    done = sum(len(log.read_text().split()) for log in folder.glob("*.log"))
    return not limit.exists() or done < int(limit.read_text())

class Loaded:
    name, parameters, grid = "counted", 0, GRID
    identity, provenance = {"revision": 1, "compute_dtype": "float32"}, {"package": "counted 1.0"}

    def encode(self, views):
        folder = Path(os.environ["COUNTED"])
        while not allowed(folder):
            time.sleep(0.02)
        names = [view_sha256(view.permute(1, 2, 0).numpy()) for view in views]
        with open(folder / f"{os.getpid()}.log", "a") as log:
            log.writelines(f"{name}\\n" for name in names)
        if (folder / "slow").exists():
            time.sleep(float((folder / "slow").read_text()))
        if (folder / "refused").exists() and (folder / "refused").read_text() in names:
            raise RuntimeError("no tokens for this one")
        return torch.nn.functional.adaptive_avg_pool2d(views.float() / 255, 4)

def describe(*, tile_px, fit):
    return Description(
        name="counted", title="Counted", family="counted", grid=GRID, tile_px=tile_px, run_px=tile_px, fit=fit,
        patch=tile_px // 4, parameters=0, layer=None, depth=None, licence="MIT", gated=False, repo=None,
        identity={"revision": 1}, share="allowed", float32_only=True,
    )

def load(*, tile_px, weights, fit, device, dtype):
    return Loaded()
"""
STUDY = """
[data]
kind = "demo"
size_px = 96
tile_px = 64
split = { train = 8, val = 2, test = 4, seed = 0 }
[views]
per_tile = 8
[encoders]
names = ["counted"]
"""
VIEWS = 8 * 8 + 6
FEW = 8 * 2 + 6
SHARD = 8  # views


class Bench:
    """A study whose encoder counts, in a folder; workers find it with ``environment``."""

    def __init__(self, folder: Path, packages: Packages) -> None:
        packages.install("counted", COUNTED, entries="[frostgrid.encoders]\ncounted = counted\n")
        self.folder, self.logs = folder, folder / "logs"
        self.logs.mkdir(parents=True)
        self.study = write_study(folder, STUDY, "counting")
        self.few = write_study(folder, STUDY.replace("per_tile = 8", "per_tile = 2"), "few")
        self.environment = {"PYTHONPATH": str(packages.folder), "COUNTED": str(self.logs)}

    def extract(
        self, cache: Path | str, address: str | None = None, runs: str = "runs", study: Path | None = None
    ) -> str:
        """Extract on the cluster at ``address``, or in this process; return what is said."""
        talk = Told()
        more = {} if isinstance(cache, Path) else {"stage_to": self.folder / f"copies-{runs}"}
        work = engine.workspace(read_study(study or self.study), str(cache), self.folder / runs, 1, **more)
        with connected(None, address, None, talk) as crew:
            engine.extract_all(work, (), talk, crew=crew)
        return "\n".join(talk.said)

    def slow(self, seconds: float) -> None:
        """Let every batch take so long, from now on."""
        (self.logs / "slow").write_text(str(seconds))

    def limit(self, views: int | None) -> None:
        """Let the encoder wait once so many views are encoded, in all processes; None for as many as there are."""
        limit, new = self.logs / "limit", self.logs / "limit.new"
        if views is None:
            limit.unlink(missing_ok=True)
        else:
            new.write_text(str(views))
            new.replace(limit)

    def refuse(self, view: str) -> None:
        """Let the encoder fail for the view of this sha256; "" for none."""
        (self.logs / "refused").write_text(view or "-")

    def encoded(self) -> Counter[str]:
        """How often each view was encoded since the last call, in all processes."""
        names = [name for log in self.logs.glob("*.log") for name in log.read_text().split()]
        for log in self.logs.glob("*.log"):
            log.write_text("")
        return Counter(names)


class Told(Talk):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Doing(Thread):
    """Calls something in another thread; ``result`` waits for it and raises what it raised."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self._call, self._args = call, args
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._call(*self._args)
        except BaseException as error:
            self._error = error

    def result(self, timeout: float = 600.0) -> Any:
        self.join(timeout)
        assert not self.is_alive(), "it does not end"
        if self._error is not None:
            raise self._error
        return self._result


def until(reached: Callable[[], bool], *doing: Doing, seconds: float = 400.0) -> None:
    """Wait for something to happen while others are ``doing`` what leads to it; raise what they raise."""
    end = time.monotonic() + seconds
    while not reached():
        for one in doing:
            assert one.is_alive() or reached(), one.result()
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def shards(cache: Path, slug: str = "counted") -> int:
    """The number of shard files in a cache."""
    return sum(1 for _ in cache.glob(f"{slug}-????????????/part-*/*/c.*.*[0-9]"))


def store_of(cache: Path, slug: str) -> GridStore:
    (path,) = cache.glob(f"{slug}-????????????")
    return GridStore.open(path)


def grids(cache: Path, slug: str) -> dict[tuple[str, int], str]:
    """What each view's grid is, in digests, with what is kept beside it."""
    reader = store_of(cache, slug).reader()
    return {
        (key.tile, key.view): hashlib.sha256(reader.read(key).tobytes()).hexdigest() + str(reader.meta(key))
        for key in reader.views()
    }


def expect_like(cache: Path, other: Path) -> None:
    """Both caches hold the same grids; the first is complete, sealed, sound, and nothing is left over."""
    for slug in ("views", "counted"):
        store = store_of(cache, slug)
        status = store.status()
        assert (status.parts, status.views_done, status.views_planned) == (1, VIEWS, VIEWS)
        assert verify(store) == []
        assert not list(store.path.rglob("_work"))
        assert grids(cache, slug) == grids(other, slug)
    assert not list(cache.rglob("*.partial"))
    assert not list(cache.glob(".frostgrid*"))


@contextmanager
def unchanged(cache: Path) -> Any:
    """The shard files that are there stay as they are."""
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("c.*.*[0-9]")}
    yield
    assert before and all(path.stat().st_mtime_ns == at for path, at in before.items())
