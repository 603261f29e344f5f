"""The command that checks a cache: verify."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import (
    device_option,
    json_option,
    optional_study_option,
    quiet_option,
    runs_option,
    threads_option,
)
from pipeline.console import Talk, print_json, print_table
from pipeline.study import Study
from store.errors import InputError

if TYPE_CHECKING:
    from store.verify import Checked


@click.command()
@click.argument("cache", metavar="FOLDER|URL")
@click.option(
    "--sample",
    type=click.IntRange(1),
    metavar="N",
    help="Also encode N views again, spread over the tiles, and compare them; needs --study.",
)
@optional_study_option("The study whose images are encoded again.")
@click.option(
    "--weights", type=click.Path(path_type=Path, exists=True), help="Weights of the encoder, for --sample."
)
@device_option
@runs_option
@threads_option
@json_option
@quiet_option
def verify(
    cache: str,
    sample: int | None,
    study: Study | None,
    weights: Path | None,
    device: str | None,
    runs: Path,
    threads: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Read every grid of one cache: checksums, completeness, finite values. Exit status 4 where one is bad.

    --sample N tells whether the grids are what they say they are: N views of --study are drawn and encoded again and
    have to agree with what is stored, within the rounding of the precision they were computed in.
    """
    from pipeline.naming import is_url

    if (sample is None) != (study is None):
        raise InputError(
            "--sample and --study belong together", remedy="Give both, or neither to check the stored bytes."
        )
    talk = Talk(quiet=quiet)
    stored = _stored(cache, talk, remote=is_url(cache))
    faults = stored.faults
    again: dict[str, Any] | None = None
    if sample is not None and study is not None and not faults:
        again = _encoded_again(
            cache, study, sample, talk, weights=weights, device=device, runs=runs, threads=threads
        )
    if not stored.views_planned and not faults:
        faults.append(f"The cache has no part: nothing was extracted yet, or all is lost [{cache}]. Extract.")
    if stored.views_unwritten:
        faults.append(
            f"{stored.views_unwritten} of {stored.views_planned} planned views are not written [{cache}]. "
            "Extract, pull or push again to complete the cache."
        )
    _report(cache, stored, again, as_json=as_json)


def _stored(cache: str, talk: Talk, *, remote: bool) -> Checked:
    """Return what is wrong with the stored bytes, and what the cache holds."""
    from pipeline.naming import cache_at, local_store
    from store.sharing import check_at
    from store.verify import check

    if not remote:
        return check(local_store(cache))
    offer = cache_at(cache)
    with talk.bar(f"Reading {offer.folder}", "bytes") as update:
        return check_at(offer, on_progress=update)


def _encoded_again(
    cache: str,
    study: Study,
    sample: int,
    talk: Talk,
    *,
    weights: Path | None,
    device: str | None,
    runs: Path,
    threads: int,
) -> dict[str, Any]:
    from pipeline.naming import cache_at, is_url, local_store
    from pipeline.rechecking import recheck_cache
    from pipeline.sharing import views_of
    from pipeline.workspace import Workspace
    from store.sharing import pull

    work = Workspace(study, Path(), runs, threads)
    if not is_url(cache):
        return recheck_cache(work, local_store(cache), sample, talk, weights=weights, device=device)
    from stages.recheck import sample as sampled

    offer = cache_at(cache)
    held = views_of(offer)
    chosen = sampled([view for view in work.views if view.key in held], sample)
    with tempfile.TemporaryDirectory(prefix="frostgrid-") as folder:
        copied = pull(offer, Path(folder), views={view.key for view in chosen})
        return recheck_cache(work, copied.store, sample, talk, weights=weights, device=device)


def _report(cache: str, stored: Checked, again: dict[str, Any] | None, *, as_json: bool) -> None:
    from pipeline.commands.cache_tables import rechecked_table
    from pipeline.rechecking import recheck_faults

    faults = stored.faults if again is None else [*stored.faults, *recheck_faults(again)]
    if as_json:
        print_json(
            {
                "cache": cache,
                "views_done": stored.views_done,
                "views_planned": stored.views_planned,
                "faults": faults,
                "sample": again,
            }
        )
    else:
        if again is not None:
            print_table(rechecked_table(again["views"], again["tolerance"]))
        if not faults:
            click.echo(f"{cache}: all {stored.views_done} views are there and whole")
    for fault in faults:
        click.echo(f"Error: {fault}", err=True)
    if faults:
        raise SystemExit(4)
