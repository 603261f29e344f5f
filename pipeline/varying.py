"""What a sweep varies, as it is written on the command line: ``train.lr=1e-3,1e-4`` and ``mlp:hidden=64``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.study import Study
from store.errors import InputError

DEFAULT = "default"
"""Stands for an option that is left to the decoder, such as the depth that follows from a grid."""

_SPLIT = re.compile(r",(?![^\[{(]*[\]})])")  # commas outside of brackets


@dataclass(frozen=True)
class Value:
    """One value: what it changes in a study (by dotted key), and how people write it."""

    text: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Varied:
    """One thing that is varied, and its values; never none."""

    name: str
    values: tuple[Value, ...]


def parse_setting(text: str) -> Varied:
    """Return what ``KEY=V1,V2,…`` varies: a key of ``[train]``, or ``cache.encoding``. Doubles count once.

    Values are written as in a study file, texts without quotes where that is clear. Raises :class:`InputError` for text
    of another form, and for a key that decides more than what is trained on the caches there are.
    """
    key, separator, given = text.partition("=")
    key = key.strip()
    if not separator or not key or not given.strip():
        raise InputError(
            "A sweep varies a key of the study by its values",
            where=f"--set {text}",
            remedy="Write KEY=V1,V2.",
        )
    if not all(part.strip() for part in key.split(".")):
        raise InputError(
            f"A part of the key '{key}' is empty",
            where=f"--set {text}",
            remedy="Write it with one dot between its parts, as in train.lr.",
        )
    if key == "train.seeds":
        raise InputError("Seeds are not varied but repeated", where=f"--set {text}", remedy="Give --seeds N.")
    if key in ("train.decoder", "train.decoder_options"):
        raise InputError(
            "Decoders are varied with their options",
            where=f"--set {text}",
            remedy="Give --decoder NAME:option=value for each, or --set train.decoder_options.NAME=V1,V2.",
        )
    if key != "cache.encoding" and not key.startswith("train."):
        raise InputError(
            f"{key} decides what is cached, and a sweep trains on the caches there are",
            where=f"--set {text}",
            remedy="Vary keys of [train], or cache.encoding; for others write a study file each.",
        )
    return Varied(key, _values(key, given))


def parse_decoder(text: str, study: Study) -> Value:
    """Return the value that ``NAME`` or ``NAME:option=value,…`` stands for.

    Options that are not given are the study's for the study's own decoder, else the decoder's defaults;
    ``option=default`` is the decoder's default in any case. Raises
    :class:`InputError` for text of another form; whether there is such a decoder is for the study to say.
    """
    name, _, given = text.partition(":")
    options = dict(study.train.decoder_options) if name == study.train.decoder else {}
    for one in _SPLIT.split(given) if given else ():
        option, separator, value = one.partition("=")
        if not separator or not option.strip() or not value.strip():
            raise InputError(
                "A decoder is given by its name and its options",
                where=f"--decoder {text}",
                remedy="Write NAME or NAME:option=value,option=value.",
            )
        options[option.strip()] = None if value.strip() == DEFAULT else _parsed(value)
    return Value(text, {"train.decoder": name, "train.decoder_options": options})


def parse_decoders(texts: Sequence[str], study: Study) -> list[Varied]:
    """Return what several ``--decoder`` vary, nothing where none is given. Raises as :func:`parse_decoder`."""
    values = {text: parse_decoder(text, study) for text in texts}
    return [Varied("decoder", tuple(values.values()))] if values else []


def _values(key: str, given: str) -> tuple[Value, ...]:
    try:
        parsed = tomllib.loads(f"v = [{given}]")["v"]
    except tomllib.TOMLDecodeError:
        parsed = [_parsed(one) for one in _SPLIT.split(given)]
    found = {repr(value): Value(_written(value), {key: value}) for value in parsed}
    return tuple(found.values())


def _parsed(text: str) -> Any:
    text = text.strip()
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _written(value: Any) -> str:
    return value if isinstance(value, str) else str(value)
