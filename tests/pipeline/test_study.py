from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from pipeline.study import SplitSection, TrainSection, read_study
from store.errors import InputError, InputErrors

MINIMAL = """
[data]
kind = "folder"
root = "here"
classes = { A = [0], B = [1] }
[encoders]
names = ["stain"]
"""


def study_file(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_defaults_are_the_papers_protocol(tmp_path: Path) -> None:
    study = read_study(study_file(tmp_path, MINIMAL))
    assert study.name == "mine"
    assert study.data.tile_px == 512
    assert isinstance(study.data.split, SplitSection)
    assert study.data.split.numbers(sides_known=False) == (15, 5, 10)
    train = study.train
    assert (train.decoder, train.decoder_options, train.loss, train.precision) == (
        "single-scale",
        {},
        "ce+dice",
        "float32",
    )
    assert (train.epochs, train.validate_every, train.tiles, train.views) == (50, 10, None, None)
    assert (train.restart_epochs, train.batch, train.lr, train.seeds) == (10, 8, 1e-4, 10)
    assert study.views.per_tile == 50


@pytest.mark.parametrize("name", ["demo", "glas-224", "puma", "upv-anxa5"])
def test_every_shipped_study_is_valid_and_names_known_encoders(name: str) -> None:
    from stages.encoders import describe_encoder

    study = read_study(Path(__file__).parents[2] / "studies" / f"{name}.toml")
    for reference in study.encoders.names:
        describe_encoder(reference, tile_px=study.data.tile_px)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[train]\nepoch = 5", "Did you mean 'epochs'?"),
        ("[trian]\nepochs = 5", "Did you mean 'train'?"),
        ("[views]\naffine = { degreez = 5 }", "Did you mean 'degrees'?"),
        ("[cache]\nencoding = 'int4'", "cache.encoding"),
        ("[train]\nbatch = 0", "train.batch"),
        ("[views]\naffine = { scale = [1.5, 0.5] }", "low <= high"),
    ],
)
def test_a_wrong_field_is_named_with_its_remedy(tmp_path: Path, line: str, said: str) -> None:
    path = study_file(tmp_path, f"{MINIMAL}\n{line}\n")
    with pytest.raises(InputError) as caught:
        read_study(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.exit_status == 2


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    path = study_file(tmp_path, f"{MINIMAL}\n[train]\nepoch = 5\nbatch = 0\n")
    with pytest.raises(InputErrors) as caught:
        read_study(path)
    assert len(caught.value.faults) == 2


def test_a_section_inside_a_union_knows_its_keys(tmp_path: Path) -> None:
    path = study_file(tmp_path, MINIMAL.replace("[encoders]", "split = { trane = 3 }\n[encoders]"))
    with pytest.raises(InputError, match="Did you mean 'train'"):
        read_study(path)


def test_variables_are_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = study_file(tmp_path, MINIMAL.replace('"here"', '"${SOME_ROOT:-there}/x"'))
    monkeypatch.delenv("SOME_ROOT", raising=False)
    assert read_study(path).data.root == "there/x"
    monkeypatch.setenv("SOME_ROOT", "elsewhere")
    assert read_study(path).data.root == "elsewhere/x"
    path.write_text(MINIMAL.replace('"here"', '"${NOT_SET_ANYWHERE}"'), encoding="utf-8")
    with pytest.raises(InputError, match="NOT_SET_ANYWHERE"):
        read_study(path)


def test_missing_and_broken_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such study"):
        read_study(tmp_path / "none.toml")
    with pytest.raises(InputError, match="not valid TOML"):
        read_study(study_file(tmp_path, "[data\n"))
    with pytest.raises(InputError, match=r"data\.root|root is missing"):
        read_study(study_file(tmp_path, MINIMAL.replace('root = "here"\n', "")))


def test_a_study_takes_all_losses_and_precisions_there_are() -> None:
    from stages.training.loss import LOSSES
    from stages.training.settings import Precision

    fields = TrainSection.model_fields
    assert set(get_args(fields["loss"].annotation)) == set(LOSSES)
    assert get_args(fields["precision"].annotation) == get_args(Precision)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[train]\nviews = 51", r"train\.views is 51, but a tile has 50 views \(views\.per_tile\)"),
        ("[train]\ntiles = 0", r"train\.tiles"),
        ("[train]\nprecision = 'float64'", r"train\.precision"),
        ("[train]\nloss = 'hinge'", r"train\.loss"),
        ("[train]\nwidth = 64", r"Unknown key 'train\.width'"),
    ],
)
def test_a_wrong_training_setting_is_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_study(study_file(tmp_path, f"{MINIMAL}\n{line}\n"))
