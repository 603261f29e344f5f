"""What single workers may do wrong: be silent, be paused, be blind, or belong to another command meanwhile."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.cluster import equipping, learning
from pipeline.cluster.doubts import Doubt
from pipeline.cluster.equipping import AGAIN_S, Needs, equip
from pipeline.cluster.here import Here
from pipeline.cluster.line import RESOURCE, Line
from pipeline.cluster.machines import Found
from pipeline.cluster.roster import Roster
from pipeline.console import Talk
from store.errors import AccessError, DamagedGrid

FOUND = Found("host", (0,), 1, "", ())


class Workers:
    """A scheduler's client whose workers answer as they are told to: by the name of the question, and address."""

    def __init__(self, **answers: dict[str, Any]) -> None:
        self.answers = answers

    def run(self, question: Any, _what: Any, *, workers: list[str], on_error: str) -> dict[str, Any]:
        assert on_error == "return"
        return {address: self.answers[question.__name__].get(address) for address in workers}

    def nthreads(self) -> dict[str, int]:
        return dict.fromkeys([*self.answers["look"], *self.answers["ready"]], 1)


def test_a_worker_that_does_not_answer_is_asked_again_and_one_that_is_ready_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(equipping, "same_gpu", lambda _: {})
    monkeypatch.setattr(equipping, "too_many", lambda _: {})
    known = {"old": FOUND}
    client: Any = Workers(
        look={
            "hung": TimeoutError(),
            "lost": OSError("closed"),
            "new": FOUND,
            "odd": RuntimeError("no torch"),
        },
        ready={"old": OSError("closed"), "new": TimeoutError()},
    )
    unfit = equip(client, ["hung", "lost", "new", "odd"], Needs(), known)
    assert known == {"old": FOUND}
    assert {name: one.until < float("inf") for name, one in unfit.items()} == {
        "hung": True, "lost": True, "new": True, "odd": False,
    }  # fmt: skip
    assert "does not answer" in unfit["hung"].faults[0] and "no torch" in unfit["odd"].faults[0]
    assert abs(unfit["hung"].until - time.monotonic() - AGAIN_S) < 60


def test_a_look_that_hangs_on_a_worker_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equipping, "_look", lambda *_: time.sleep(1))
    worker: Any = SimpleNamespace(state=SimpleNamespace(nthreads=1))
    with pytest.raises(TimeoutError):
        asyncio.run(equipping.look(Needs(patience=0.1), worker))


def test_an_error_of_a_workers_own_machine_is_told_and_not_taken_for_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look(*_: Any) -> None:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(equipping, "_look", look)
    worker: Any = SimpleNamespace(state=SimpleNamespace(nthreads=1))
    with pytest.raises(RuntimeError, match=r"OSError: libcudart\.so\.12"):
        asyncio.run(equipping.look(Needs(), worker))


def test_that_there_is_no_worker_for_the_tasks_is_said_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    there: dict[str, dict[str, Any]] = {}
    line = cast(Line, SimpleNamespace(workers=lambda: there, asked=lambda _: {}))
    roster = Roster(None, Talk(), "--scheduler")
    running, paused = ({"resources": {RESOURCE: 1}, "status": status} for status in ("running", "paused"))

    def said() -> str:
        roster.refresh(line)
        roster.refresh(line)  # once is enough
        text = capsys.readouterr().err
        assert text.count("waiting for a worker") <= 1
        return text

    assert "waiting for a worker" in said()
    roster._ready["a"] = FOUND  # as one that was equipped
    there["a"] = running
    assert said() == "" and list(roster.ready) == ["a"]
    there["a"] = paused
    text = " ".join(said().split())
    assert "dask has paused these, as it does when memory is full: a" in text
    assert not roster.ready and list(roster.fit) == ["a"]  # it still counts among those that may doubt
    there["a"] = running
    assert said() == ""
    roster.refresh(line, stuck=True)  # it may not have what is left
    assert "waiting for a worker" in capsys.readouterr().err
    assert said() == ""
    del there["a"]
    assert "waiting for a worker" in said()


@pytest.mark.parametrize("when", ["loading", "training"])
@pytest.mark.parametrize(
    "error", [AccessError("Forbidden", where="s3://b"), DamagedGrid("Damaged", where="c.0")]
)
def test_what_a_worker_cannot_read_is_a_doubt_whenever_it_shows(
    when: str, error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr("pipeline.cluster.here._here", Here(1, tmp_path))
    monkeypatch.setattr("distributed.get_worker", lambda: SimpleNamespace(address="tcp://a"))
    monkeypatch.setattr(learning, "_check_decoder", lambda _: None)
    monkeypatch.setattr(learning, "budget_for", lambda *_: learning.Budget(1))
    monkeypatch.setattr(learning, "replace", lambda one, **_: one)
    loaded: Any = SimpleNamespace(loaded=None, features=None)
    monkeypatch.setattr(learning, "_load", fails if when == "loading" else lambda *_: loaded)
    task: Any = SimpleNamespace(train=fails, there=lambda: False, settings=None, geometry=None)
    tiles: Any = SimpleNamespace(key="k")
    source = learning.Source("stain", learning.Address("t", "p"), learning.Address("m", "p"))
    with pytest.raises(Doubt) as caught:
        learning.train(tiles, source, task)
    assert (caught.value.what, caught.value.error, caught.value.worker) == (source.name, error, "tcp://a")


def test_what_was_begun_for_another_command_does_not_stay(tmp_path: Path) -> None:
    here = Here(1, tmp_path, session="first")

    def slow() -> str:
        here.session = "second"  # while it is made
        return "old"

    assert here.kept("slot", "key", slow) == "old"
    assert here.kept("slot", "key", lambda: "new") == "new"
    assert here.kept("slot", "key", lambda: "newer") == "new"
