"""What a sweep varies, as people write it."""

from __future__ import annotations

import pytest
from studykit import write_study

from pipeline.study import Study, read_study
from pipeline.varying import parse_decoder, parse_setting
from store.errors import InputError


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return read_study(write_study(tmp_path_factory.mktemp("study")))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("train.lr=1e-3,1e-4", [1e-3, 1e-4]),
        ("train.views=1, 5 ,20", [1, 5, 20]),
        ("train.loss=ce,ce+dice", ["ce", "ce+dice"]),
        ("train.loss='ce', \"dice\"", ["ce", "dice"]),
        ("train.precision=bfloat16", ["bfloat16"]),
        ("train.decoder_options.width=64", [64]),
        ("train.some=[1,2],[3,4]", [[1, 2], [3, 4]]),
        ("train.lr=1e-3,0.001", [0.001]),
        ("cache.encoding=float16,int8", ["float16", "int8"]),
        ("train.lr=1e-3,abc", [1e-3, "abc"]),
    ],
)
def test_values_are_read_as_in_a_study_and_doubles_once(text: str, values: list[object]) -> None:
    varied = parse_setting(text)
    key = text.partition("=")[0]
    assert varied.name == key
    assert [value.changes for value in varied.values] == [{key: value} for value in values]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.lr", "Write KEY=V1,V2"),
        ("train.lr=", "Write KEY=V1,V2"),
        ("=3", "Write KEY=V1,V2"),
        ("train.seeds=3,4", "Give --seeds N"),
        ("train.decoder=linear,mlp", "Give --decoder NAME"),
        ("views.per_tile=3", "decides what is cached"),
        ("lr=3", "decides what is cached"),
        ("train..lr=0.5", "part of the key 'train..lr' is empty"),
        ("train.=0.5", "part of the key 'train.' is empty"),
        ("train.decoder_options. .width=3", "is empty"),
    ],
)
def test_what_a_sweep_cannot_vary_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parse_setting(text)
    assert text in str(caught.value.where)


def test_a_decoder_has_the_options_given_over_those_of_the_study(study: Study) -> None:
    def options(text: str) -> object:
        return parse_decoder(text, study).changes["train.decoder_options"]

    assert options("single-scale") == {"width": 16}
    assert options("single-scale:depth=2,upsampling=pixel-shuffle") == {
        "width": 16,
        "depth": 2,
        "upsampling": "pixel-shuffle",
    }
    assert options("single-scale:width=64") == {"width": 64}
    assert options("mlp") == {}
    assert options("mlp:hidden=3") == {"hidden": 3}
    assert study.train.decoder_options == {"width": 16}
    for wrong in ("mlp:hidden", "mlp:=3", "mlp:hidden="):
        with pytest.raises(InputError, match="Write NAME or NAME:option=value"):
            parse_decoder(wrong, study)
