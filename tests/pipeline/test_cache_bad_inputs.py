"""What the cache commands say to people who give them the wrong thing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cachekit import cache, parsed, refused, small_cache

from pipeline.choosing import UnclearCache, Wanted
from store.errors import InputError, NoCache


@pytest.mark.parametrize("command", ["info", "verify", "push", "export", "convert", "diff"])
def test_a_place_of_several_caches_given_for_one_is_listed(command: str, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    names = [small_cache(place, slug, {}).name for slug in ("mine", "yours")]
    more = {"push": ["p"], "export": ["x.h5"], "convert": ["--to", "int8"], "diff": [place]}.get(command, [])
    given = cache(command, place, *more)
    refused(given, "2 caches", "one cache is asked for", *(f"{place}/{name}" for name in names))
    if command in ("info", "verify"):
        refused(cache(command, f"file://{place}"), *(f"file://{place}/{name}" for name in names))


@pytest.mark.parametrize(
    "to",
    ["/proc/foo", "/proc/foo/x", "file", "file/x", "x" * 300],
    ids=["proc", "deep", "file", "in", "long"],
)
def test_a_destination_that_cannot_be_is_the_users_to_mend(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("a file")
    made = small_cache(tmp_path / "cache", "mine", {})
    refused(cache("push", made, to), "cannot be written there", to)
    refused(
        cache("convert", made, "--to", "int8", "--max-error", "9", "--cache", f"{to}/y"), "cannot be written"
    )
    if to != "file":
        for form in ("h5", "zip"):
            export = cache("export", made, f"{to}.{form}", "--no-masks")
            refused(export, "cannot be written there")
            assert ".partial" not in export.stderr


def test_a_file_below_a_file_shows_the_path_that_was_given(tmp_path: Path) -> None:
    made = small_cache(tmp_path / "cache", "mine", {})
    (tmp_path / "file").write_text("")
    ended = cache("export", made, tmp_path / "file" / "x.h5", "--no-masks")
    refused(ended, f"{tmp_path}/file is no folder")
    assert "partial" not in ended.stderr


def test_caches_are_not_written_into_one_another(tmp_path: Path) -> None:
    made, other = small_cache(tmp_path / "a", "mine", {}), small_cache(tmp_path / "b", "yours", {})
    for command in (
        ["push", other, made],
        ["push", other, f"file://{made}"],
        ["merge", other, made],
        ["convert", other, "--to", "int8", "--max-error", "9", "--cache", made],
    ):
        refused(cache(*command), "not written into one another")
    refused(cache("gc", made), "one cache, not a folder of caches", str(made.parent))


def test_a_lost_shard_is_told_once(tmp_path: Path) -> None:
    made = small_cache(tmp_path, "mine", {})
    next(made.glob("part-*/tokens/c.0*")).unlink()
    for place in (str(made), f"file://{made}"):
        found = parsed(cache("verify", place, "--json"), 4)
        assert len(found["faults"]) == 1
        assert "the shard is lost (tile tile, view 0; tile tile, view 1" in found["faults"][0]


def test_a_lost_manifest_is_told_once_and_views_never_written_are_counted(tmp_path: Path) -> None:
    made = small_cache(tmp_path, "mine", {})
    next(made.glob("part-*/manifest.json")).unlink()
    assert len(parsed(cache("verify", made, "--json"), 4)["faults"]) == 1
    from store import GridSpec, GridStore, ViewRow

    spec = GridSpec("tokens", (2, 2, 2), "float16", ("d", "h", "w"))
    planned = GridStore.at(tmp_path, "planned", {"encoder": {}}, spec, {}, create=True)
    refused(cache("verify", planned.path), "no part", status=4)
    planned.plan([ViewRow("1" * 64, view, "tile", "") for view in range(4)])
    refused(cache("verify", planned.path), "4 of 4 planned views are not written", status=4)


def test_a_table_of_views_that_is_lost_is_told_by_info_and_verify_alike(tmp_path: Path) -> None:
    made = small_cache(tmp_path, "mine", {})
    next(made.glob("part-*/part.json")).write_text("x")
    for command in ("info", "verify"):
        ended = cache(command, made, "--json")
        assert len(parsed(ended, 4)["faults"]) == 1
        assert "part.json" in ended.stderr


def test_the_hdf5_file_of_an_int8_cache_says_that_it_does_not_come_back(tmp_path: Path) -> None:
    made = small_cache(tmp_path / "cache", "mine", {})
    small = parsed(cache("convert", made, "--to", "int8", "--max-error", "9", "--json"))["to"]
    told = cache("export", small, tmp_path / "x.h5", "--no-masks")
    assert "import does not take this file" in told.stderr
    refused(cache("import", tmp_path / "x.h5", "--cache", tmp_path / "to"), "int8", "zip")
    for store, form, importable in ((small, "h5", False), (small, "zip", True), (made, "h5", True)):
        file = tmp_path / f"y{importable}.{form}"
        assert parsed(cache("export", store, file, "--no-masks", "--json"))["importable"] is importable
        assert (cache("import", file, "--cache", tmp_path / form).exit_code == 0) is importable
    for command in ("export", "import"):
        assert "int8" in cache(command, "--help").stdout


@pytest.mark.parametrize("form", ["h5", "zip"])
def test_a_second_import_says_that_all_was_there(form: str, tmp_path: Path) -> None:
    made, file = small_cache(tmp_path / "cache", "mine", {}), tmp_path / f"x.{form}"
    assert cache("export", made, file, "--no-masks").exit_code == 0
    assert "3 views added" in cache("import", file, "--cache", tmp_path / "to").stderr
    again = cache("import", file, "--cache", tmp_path / "to")
    assert "all 3 views were there already" in again.stderr
    found = parsed(cache("import", file, "--cache", tmp_path / "to", "--json"))
    assert (found["views"], found["views_added"], found["views_done"]) == (3, 0, 3)


def test_an_empty_place_is_said_to_be_empty(tmp_path: Path) -> None:
    assert cache("ls", tmp_path).stdout == f"{tmp_path}: no caches\n"
    assert json.loads(cache("ls", tmp_path, "--json").stdout)["caches"] == []


def test_only_that_there_is_no_cache_is_no_cache() -> None:
    wanted = Wanted("x", "x", {"a": 1})
    with pytest.raises(NoCache):
        wanted.choose({}, where="here", remedy="Extract.")
    assert issubclass(UnclearCache, InputError)
    assert not issubclass(UnclearCache, NoCache)
