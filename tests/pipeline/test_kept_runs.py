"""Runs that are there already: taken for what they say they are, never for what their folder is called."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from cachekit import Home, parsed, refused

from pipeline import engine
from pipeline.budget import Room
from pipeline.job import Job
from pipeline.journal_reading import FOLDER, entries_in
from pipeline.loading import load
from pipeline.recorded import EVERY_RUN, recorded_runs, run_folders
from pipeline.study import read_study
from pipeline.sweeping import combinations
from pipeline.tilesets import TileSet
from pipeline.varying import parse_setting
from pipeline.workspace import Workspace
from store.documents import encode
from store.errors import VerificationError


def workspace(home: Home) -> Workspace:
    return engine.workspace(read_study(home.study), str(home.cache), home.folder / "runs", 1)


def pretender(home: Home) -> tuple[Job, Path]:
    """Put the study's own run where that of another learning rate belongs; return that job, and the folder."""
    (job,) = combinations(workspace(home), [], [parse_setting("train.lr=0.5")], 1, None)
    (run,) = home.folder.glob("runs/small/stain/linear/seed-000-*")
    shutil.copytree(run, job.run_folder(0))
    return job, job.run_folder(0)


def test_a_run_of_other_inputs_under_the_right_name_is_refused(copy: Home) -> None:
    job, folder = pretender(copy)
    with pytest.raises(VerificationError, match=r"settings\.lr") as caught:
        job.finished(0)
    assert caught.value.where == str(folder) and caught.value.remedy == "Remove it to train again."
    refused(copy.run("sweep", "--set", "train.lr=0.5"), str(folder), "settings.lr", status=4)
    shutil.rmtree(folder)
    assert parsed(copy.run("sweep", "--set", "train.lr=0.5", "--json"))["trained"] == 1


def test_a_run_is_not_taken_for_the_one_that_was_trained_meanwhile_if_it_is_another(copy: Home) -> None:
    job, folder = pretender(copy)
    tiles = TileSet.of(job.needs().values())
    cpu = torch.device("cpu")
    room = Room("host", masks=True)
    loaded = load(job.tokens, job.masks, tiles, cpu, room, encoder=job.encoder, scratch=copy.folder)
    task = job.task(0, job.selection(tiles))
    with pytest.raises(VerificationError, match=r"settings\.lr"):
        task.perform(loaded, loaded.features(cpu), cpu, lambda report: None)
    shutil.rmtree(folder)
    for _ in range(2):  # the second finds the first
        task.perform(loaded, loaded.features(cpu), cpu, lambda report: None)
    assert job.finished(0) is not None


def test_a_record_that_says_nothing_of_use_ends_no_command_in_a_trace(copy: Home) -> None:
    there = [(run.encoder, run.seed) for run in recorded_runs(workspace(copy))]
    assert there == [("stain", 0)]
    studies: list[object] = [[], {}, {"train": [3]}, {"train": {}, "cache": {}}, {"train": {}, "cache": "x"}]
    (own,) = copy.folder.glob("runs/small/stain/linear/seed-000-*/run.json")
    body = {
        name: value for name, value in json.loads(own.read_text()).items() if name not in ("format", "digest")
    }
    partial = [{**body, "identity": {"encoder": "stain", "study": study}} for study in studies]
    partial.append({name: value for name, value in body.items() if name != "files"})
    texts = ["[]", "3", '"x"', "null", "{", *(encode("run", 2, one).decode() for one in partial)]
    texts.append(encode("run", 9, body).decode())
    for number, text in enumerate(texts):
        folder = copy.folder / f"runs/small/other/linear/seed-{number:03d}-00000000"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(text)
    assert [(run.encoder, run.seed) for run in recorded_runs(workspace(copy))] == there
    assert engine.trained_encoders(workspace(copy)) == ["stain"]
    done = copy.run("report")
    refused(done, "12 damaged run(s) were left out", "seed-000-00000000/run.json", status=4)
    notes = json.loads((copy.folder / "runs/small/summary.json").read_text())["notes"]
    for said in (
        "not JSON any more",
        "does not say of which encoder",
        "does not say files",
        "Update frostgrid",
    ):
        assert any(said in note for note in notes), said
    assert (copy.folder / "runs/small/report.html").is_file()
    shutil.rmtree(copy.folder / "runs/small/other")
    assert copy.run("report").exit_code == 0
    own.write_text("[]")
    refused(copy.run("report"), str(own), status=4)


def test_runs_are_found_while_the_folder_of_journals_comes_and_goes(copy: Home) -> None:
    results = copy.folder / "runs/small"
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            (results / FOLDER).mkdir()
            (results / FOLDER).rmdir()

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(3000):
            assert len(run_folders(results, EVERY_RUN)) == 1
            assert list(entries_in(results)) == []
    finally:
        over.set()
        other.join()


def test_what_a_killed_process_has_left_of_a_run_is_no_run(copy: Home) -> None:
    (run,) = copy.folder.glob("runs/small/stain/linear/seed-000-*")
    half = run.with_name(f"{run.name}.0123-4567-89ab.partial")
    shutil.copytree(run, half)
    (half / "losses.csv").unlink()
    shutil.rmtree(copy.store())  # so that runs are looked for by what they say
    done = copy.run("report")
    assert done.exit_code == 0, done.output
    assert len(list(recorded_runs(workspace(copy)))) == 1
    assert parsed(copy.run("status", "--json"))["other_runs"]["recorded"] == []


def test_the_order_of_training_tiles_is_found_once_for_all_jobs(copy: Home) -> None:
    jobs = combinations(workspace(copy), [], [parse_setting("train.tiles=1,2")], 1, None)
    assert len(jobs[0].tiles["train"]) == 1
    shutil.rmtree(copy.folder / "data/masks")  # of which every one is read for it
    assert len(jobs[1].tiles["train"]) == 2
