"""Sweeps over decoders and settings: every combination once, from caches that are read once."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cachekit import Home, cache, parsed, refused

from pipeline import engine, trainer
from pipeline.budget import PROCESS_BYTES, STREAMED_BATCHES, Room, budget_for
from pipeline.loading import Loaded, Shared
from pipeline.outcome import Following, Outcome
from pipeline.study import read_study
from pipeline.sweeping import combinations, variants
from pipeline.tilesets import TileSet
from pipeline.varying import parse_decoders, parse_setting
from pipeline.workspace import Workspace
from stages.training.footprint import OVERHEAD, step_bytes
from stages.training.record import load_run

FACTORS = ("--decoder", "linear", "--decoder", "mlp:hidden=4", "--set", "train.views=1,2")


def runs_of(home: Home) -> dict[str, int]:
    """Every finished run, with the time it was written."""
    return {
        str(path.parent.relative_to(home.folder)): path.stat().st_mtime_ns
        for path in (home.folder / "runs").glob("**/decoder.safetensors")
    }


def workspace(home: Home) -> Workspace:
    return engine.workspace(read_study(home.study), str(home.cache), home.folder / "runs", 1)


def rows_of(home: Home) -> list[dict[str, str]]:
    with (home.folder / "runs/small/sweep.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_combination_is_trained_once_and_what_train_did_is_reused(copy: Home) -> None:
    before = runs_of(copy)
    assert len(before) == 1
    found = parsed(copy.run("sweep", *FACTORS, "--seeds", "2", "--json"))
    assert (found["runs"], found["finished"], found["trained"], found["failed"]) == (8, 8, 7, [])
    assert [row["factors"] for row in found["combinations"]] == [
        {"decoder": decoder, "train.views": views} for decoder in ("linear", "mlp:hidden=4") for views in "12"
    ]
    assert [row["seeds"] for row in found["combinations"]] == [[0, 1]] * 4
    after = runs_of(copy)
    assert len(after) == 8 and before.items() <= after.items()

    again = parsed(copy.run("sweep", *FACTORS, "--seeds", "2", "--json"))
    assert again.pop("trained") == 0
    found.pop("trained")
    assert again == found
    assert runs_of(copy) == after
    assert (
        parsed(copy.run("sweep", *FACTORS, "--set", "train.lr=1e-3,1e-4", "--json", "--seeds", "1"))[
            "trained"
        ]
        == 4
    )


def test_a_dry_run_lists_what_is_done_and_trains_nothing(copy: Home) -> None:
    before = runs_of(copy)
    listed = parsed(copy.run("sweep", *FACTORS, "--dry-run", "--json"))
    assert "trained" not in listed
    assert [row["missing_seeds"] for row in listed["combinations"]] == [[0], [], [0], [0]]
    assert [row["dice"]["mean"] is None for row in listed["combinations"]] == [True, False, True, True]
    shown = copy.run("sweep", *FACTORS, "--dry-run")
    assert "mlp:hidden=4" in shown.stdout and "1 of 4 runs finished" in shown.stdout
    assert runs_of(copy) == before
    assert not (copy.folder / "runs/small/sweep.csv").exists()


def test_a_run_gives_the_same_in_a_sweep_as_alone(copy: Home) -> None:
    assert copy.run("sweep", *FACTORS, "--seeds", "2").exit_code == 0
    alone = copy.study.read_text().replace(
        'decoder = "linear"', 'decoder = "mlp"\ndecoder_options = { hidden = 4 }\nviews = 1'
    )
    copy.study.write_text(alone)
    there = runs_of(copy)
    assert "2 kept" in copy.run("train", "--seeds", "2").stderr
    assert copy.run("train", "--seeds", "2", "--runs", copy.folder / "runs/again").exit_code == 0
    new = {name: at for name, at in runs_of(copy).items() if name not in there}
    assert len(new) == 2
    for name in new:
        one, other = (
            (copy.folder / place / "decoder.safetensors").read_bytes()
            for place in (name, name.replace("runs/again", "runs"))
        )
        assert one == other


def test_the_file_has_a_row_for_each_run_and_class_that_follows_from_its_counts(copy: Home) -> None:
    found = parsed(copy.run("sweep", *FACTORS, "--seeds", "2", "--json"))
    rows = rows_of(copy)
    assert len(rows) == 4 * 2 * 2
    for combination in found["combinations"]:
        mine = [
            row
            for row in rows
            if row["decoder"] == combination["decoder"]
            and row["train.views"] == combination["factors"]["train.views"]
        ]
        assert {row["decoder_parameters"] for row in mine} == {str(combination["decoder_parameters"])}
        assert {row["train.decoder_options.hidden"] for row in mine} == (
            {"4"} if combination["decoder"] == "mlp" else {""}
        )
        by_seed = []
        for seed in ("0", "1"):
            dice = [
                2 * int(row["intersection"]) / (int(row["prediction"]) + int(row["truth"]))
                for row in mine
                if row["seed"] == seed
            ]
            assert [float(row["dice"]) for row in mine if row["seed"] == seed] == pytest.approx(
                dice, abs=1e-12
            )
            by_seed.append(np.mean(dice))
        assert combination["dice"]["mean"] == pytest.approx(np.mean(by_seed))
        assert combination["dice"]["std"] == pytest.approx(np.std(by_seed, ddof=1))
    shown = copy.run("sweep", *FACTORS, "--seeds", "2").stdout
    mean, std = (100 * found["combinations"][0]["dice"][name] for name in ("mean", "std"))
    assert f"{mean:.2f} ± {std:.2f}" in shown


def test_variants_are_all_that_was_trained_on_the_data_as_they_are(copy: Home) -> None:
    assert copy.run("sweep", *FACTORS, "--seeds", "2").exit_code == 0
    assert copy.run("sweep", "--set", "train.tiles=2").exit_code == 0
    found, left_out = variants(workspace(copy))
    assert left_out == []
    assert [(one.encoder, one.decoder, dict(one.factors), tuple(one.runs)) for one in found] == [
        (
            "stain",
            decoder,
            {"train.decoder_options.hidden": hidden, "train.tiles": tiles, "train.views": views},
            seeds,
        )
        for decoder, hidden, tiles, views, seeds in [
            ("linear", "", "2", "2", (0,)),
            ("linear", "", "3", "1", (0, 1)),
            ("linear", "", "3", "2", (0, 1)),
            ("mlp", "4", "3", "1", (0, 1)),
            ("mlp", "4", "3", "2", (0, 1)),
        ]
    ]
    for one in found:
        counts = one.test_counts
        assert counts.shape == (len(one.runs), 2, 2, 3)
        pooled = counts.sum(axis=1)
        dice = (2 * pooled[..., 0] / (pooled[..., 1] + pooled[..., 2])).mean(axis=-1)
        np.testing.assert_allclose(one.dice, dice)
    text = copy.study.read_text()
    copy.study.write_text(text.replace("seed = 0", "seed = 5"))
    assert variants(workspace(copy)) == ([], [])
    copy.study.write_text(text)
    damaged = next((copy.folder / "runs").glob("small/stain/mlp/*/losses.csv"))
    damaged.write_text("other")
    refused(copy.run("sweep", *FACTORS, "--seeds", "2"), str(damaged), status=4)
    other = copy.run("sweep", "--set", "train.tiles=2")
    refused(other, str(damaged), status=4)
    assert "1 of 1 runs finished" in other.stdout


def test_fewer_tiles_are_nested_hold_every_class_and_are_all_that_is_trained_on(copy: Home) -> None:
    work = workspace(copy)

    def chosen(tiles: int | None) -> list[str]:
        train = work.study.train.model_copy(update={"tiles": tiles})
        return [
            tile.name for tile in work.of(work.study.model_copy(update={"train": train})).training_tiles()
        ]

    assert set(chosen(1)) < set(chosen(2)) < set(chosen(3)) == set(chosen(None))
    assert chosen(3) == chosen(None) == [tile.name for tile in work.tiles["train"]]
    assert chosen(2) == chosen(2)
    found = parsed(copy.run("sweep", "--set", "train.tiles=1,2,3", "--json"))
    assert found["trained"] == 2  # three of three are the study itself
    refused(
        copy.run("sweep", "--set", "train.tiles=4"), "train.tiles is 4, but the training split has 3 tiles"
    )


def test_few_tiles_without_a_class_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    home = Home(tmp_path)
    for path in sorted((home.folder / "data/masks").iterdir())[1:]:
        mask = np.zeros((40, 40), np.uint8)
        mask[:] = int(path.stem[1:]) % 2
        Image.fromarray(mask).save(path)
    assert home.run("extract").exit_code == 0
    refused(
        home.run("sweep", "--set", "train.tiles=1"),
        "1 of the training tiles do not hold every class",
        "Give 2 or more",
    )
    assert home.run("sweep", "--set", "train.tiles=2").exit_code == 0


def test_int8_is_swept_beside_float16_once_it_is_there(copy: Home) -> None:
    both = ("sweep", "--set", "cache.encoding=float16,int8")
    made = copy.store("stain")
    refused(
        copy.run(*both),
        "stain is cached as float16, not as int8",
        f"frostgrid cache convert {made} --to int8",
    )
    assert cache("convert", made, "--to", "int8").exit_code == 0
    found = parsed(copy.run(*both, "--json"))
    assert [row["factors"]["cache.encoding"] for row in found["combinations"]] == ["float16", "int8"]
    assert found["trained"] == 1
    assert copy.run("report").exit_code == 0
    shown = json.loads(next((copy.folder / "runs").glob("*/summary.json")).read_text())["ablations"]
    assert {row["value"]: row["before"] for row in shown} == {
        "float16": [],
        "int8": ["cache", "convert", f"cache/{made.name}", "--to", "int8"],
    }


def test_every_fault_of_every_combination_is_told_at_once_and_nothing_is_trained(copy: Home) -> None:
    before = runs_of(copy)
    told = copy.run(
        "sweep", "--decoder", "nope", "--decoder", "linear:width=3", "--decoder", "mlp",
        "--set", "train.views=1,9", "--set", "train.lr=-1,abc,0.1",
    )  # fmt: skip
    refused(
        told,
        "5 faults",
        "unknown decoder 'nope'",
        "the decoder linear has no option 'width'",
        "train.views is 9, but a tile has 2 views",
        "'train.lr': Input should be greater than 0 (given: -1)",
        "(given: 'abc')",
        "Nothing was trained",
    )
    impossible = ("--decoder", "single-scale:depth=8", "--decoder", "linear", "--set", "train.tiles=2,9")
    for more in ((), ("--dry-run",)):
        refused(
            copy.run("sweep", *impossible, *more),
            "2 faults",
            "a depth of 8 doubles the grid of 2 to 512 px",
            "train.tiles is 9",
        )
    refused(
        copy.run("sweep", "--encoder", "stain", "--encoder", "pixels"),
        "no cache of pixels",
        "frostgrid extract",
    )
    refused(copy.run("sweep", "--set", "train.lr=1", "--set", "train.lr=2"), "train.lr is varied twice")
    for key in ("train.lr.x", "train.bogus.x", "train.decoder_options.a.b"):
        refused(copy.run("sweep", "--set", f"{key}=1,2", "--dry-run"), f"Unknown key '{key}'")
    refused(copy.run("sweep", "--set", "train.epoch=1"), "Did you mean 'epochs'?")
    refused(copy.run("sweep", "--parallel", "999"), "999 processes are more than", "Give")
    assert runs_of(copy) == before


def test_a_run_that_fails_is_named_and_stops_no_other(copy: Home) -> None:
    done = copy.run("sweep", "--set", "train.lr=1e38,1e-3", "--seeds", "2", "--decoder", "mlp", "--json")
    refused(
        done,
        "2 of 4 runs failed",
        "stain, mlp, decoder = mlp, train.lr = 1e+38, seed 1",
        "Lower lr",
        status=1,
    )
    found = json.loads(done.stdout)
    assert found["trained"] == 2 and len(found["failed"]) == 2
    assert [row["missing_seeds"] for row in found["combinations"]] == [[0, 1], []]
    assert {row["train.lr"] for row in rows_of(copy)} == {"0.001", "0.0001"}
    copy.study.write_text(copy.study.read_text().replace('decoder = "linear"', 'decoder = "mlp"\nlr = 1e38'))
    refused(copy.run("train"), "1 of 1 runs failed", "stain, mlp, seed 0", status=1)
    refused(copy.run("run"), "1 of 1 runs failed", status=1)


@pytest.fixture(scope="module")
def opened() -> Iterator[Callable[[], list[str]]]:
    """Returns the token shards that were opened since it was asked last."""
    found: list[str] = []
    watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and "/tokens/c." in str(arguments[0]):
            found.append(str(arguments[0]))

    sys.addaudithook(hook)

    def since() -> list[str]:
        seen = found.copy()
        found.clear()
        return seen

    yield since
    watching = False


def test_a_sweep_reads_a_cache_once_whatever_it_varies(copy: Home, opened: Callable[[], list[str]]) -> None:
    opened()
    assert parsed(copy.run("sweep", "--set", "train.lr=1e-3", "--json"))["trained"] == 1
    once = opened()
    assert once
    assert (
        parsed(copy.run("sweep", *FACTORS, "--set", "train.tiles=2,3", "--seeds", "3", "--json"))["trained"]
        == 23
    )
    assert sorted(opened()) == sorted(once)


def test_bfloat16_is_another_run_and_trains(copy: Home) -> None:
    assert parsed(copy.run("sweep", "--set", "train.precision=float32,bfloat16", "--json"))["trained"] == 1
    runs = [load_run(copy.folder / name) for name in runs_of(copy)]
    assert sorted(run.identity["settings"]["precision"] for run in runs) == ["bfloat16", "float32"]
    assert all(
        tensor.dtype.is_floating_point and tensor.itemsize == 4
        for run in runs
        for tensor in run.result.weights.values()
    )


def test_little_memory_cuts_batches_into_pieces_and_too_little_is_refused(copy: Home) -> None:
    job = combinations(workspace(copy), [], [], 1, None)[0]
    one_tile = int(OVERHEAD * step_bytes(job.settings, job.geometry, 1)) + 1
    least = PROCESS_BYTES + one_tile + STREAMED_BATCHES * job.settings.batch * job.tokens.spec.stored_nbytes
    again = copy.folder / "again"
    done = copy.run("train", "--max-memory", f"{least}B", "--runs", again)
    assert done.exit_code == 0, done.output
    (cut,) = (load_run(path.parent) for path in again.glob("**/run.json"))
    (whole,) = (load_run(copy.folder / name) for name in runs_of(copy) if "again" not in name)
    assert (cut.environment["tiles_at_once"], whole.environment["tiles_at_once"]) == (1, 8)
    assert cut.folder.name == whole.folder.name
    np.testing.assert_allclose(cut.result.losses, whole.result.losses, rtol=1e-5)
    for name, weight in whole.result.weights.items():
        np.testing.assert_allclose(cut.result.weights[name], weight, rtol=1e-3, atol=1e-6)
    refused(copy.run("train", "--seeds", "2", "--max-memory", "400MiB"), "on a single tile takes about")
    refused(copy.run("train", "--max-memory", "much"), "is no amount of memory")
    refused(copy.run("train", "--max-memory", "0"), "'0' is not even a byte")
    assert copy.run("train", "--seeds", "2", "--max-memory", "0.5 GiB").exit_code == 0


def test_little_memory_gives_a_run_the_same_bits_whatever_else_is_missing(copy: Home) -> None:
    job = combinations(workspace(copy), [], [], 1, None)[0]
    held = TileSet.of(job.needs().values()).total * (
        job.tokens.spec.stored_nbytes + job.masks.spec.stored_nbytes
    )
    two_tiles = int(OVERHEAD * step_bytes(job.settings, job.geometry, 2)) + 1
    some = PROCESS_BYTES + held + two_tiles  # more views take one of the two where they have a say
    memory = ("--max-memory", f"{some}B")

    def trained(name: str, *more: str) -> dict[str, tuple[bytes, int]]:
        runs = copy.folder / name
        done = copy.run("sweep", "--set", *more, *memory, "--runs", runs)
        assert done.exit_code == 0, done.output
        return {
            path.parent.name: (path.read_bytes(), load_run(path.parent).environment["tiles_at_once"])
            for path in runs.glob("**/decoder.safetensors")
        }

    alone = trained("alone", "train.views=1", "--seeds", "1")
    beside = trained("beside", "train.views=1,2", "--seeds", "2")
    resumed = trained("alone", "train.views=1", "--seeds", "2")
    assert (len(alone), len(beside), len(resumed)) == (1, 4, 2)
    assert alone.items() < resumed.items() < beside.items()
    decided = budget_for(job.settings, job.geometry, [torch.device("cpu")], some).at_once
    assert {at_once for _, at_once in beside.values()} == {decided}


def test_what_a_cache_left_is_given_back_before_the_next_is_weighed_once(
    copy: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    weigh, read = trainer.room_for, trainer.load

    def weighed(*arguments: Any, **more: Any) -> Room:
        done.append(weigh(*arguments, **more))
        return Room("stream", masks=False)  # what is free has changed meanwhile

    def loaded(*arguments: Any, **more: Any) -> Loaded:
        data = read(*arguments, **more)
        done.append((arguments[4], data.grids, type(data.masks)))
        return data

    monkeypatch.setattr(trainer, "give_back_memory", lambda: done.append("given back"))
    monkeypatch.setattr(trainer, "room_for", weighed)
    monkeypatch.setattr(trainer, "load", loaded)
    assert copy.run("train", "--seeds", "3").exit_code == 0
    assert done == ["given back", Room("host", True), (Room("stream", False), None, Shared)]


def test_progress_counts_all_runs_and_weighs_them_by_their_work(copy: Home) -> None:
    work = workspace(copy)
    decoders = parse_decoders(["linear", "single-scale:width=64"], work.study)
    cheap, costly = combinations(work, [], [*decoders, parse_setting("train.epochs=4")], 1, None)
    assert costly.cost > 3 * cheap.cost
    told: list[tuple[int, int]] = []
    jobs, runs = [cheap, costly], [(0, 0), (1, 0)]
    outcome = Outcome.of(jobs)
    following = Following(jobs, runs, lambda done, total: told.append((done, total)), outcome)
    for epoch in (1, 2, 3, 4):
        following.epoch(runs[0], epoch)
    assert told[-1][0] < 4
    following.trained(runs[1])
    assert outcome.trained == [[], [0]]
    assert told[-1] == (8, 8)
    assert told[0] == (0, 8) and [done for done, _ in told] == sorted(done for done, _ in told)
