"""The commands that copy caches between places: push, pull and merge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.options import (
    LocalPath,
    cache_root_option,
    cached_dtype_option,
    encoder_option,
    json_option,
    quiet_option,
    required_study_option,
    runs_option,
    transfers_option,
    weights_option,
)
from pipeline.console import Talk, bytes_text, print_json
from pipeline.study import Study

if TYPE_CHECKING:
    from stages.encoders import AskedDtype
    from store.sharing import Copied

RIGHTS = (
    "Push to a place that only people with the same rights can read, or, where you have the right to pass it on, "
    "repeat the command with --i-have-the-rights."
)


@click.command()
@click.argument("caches", nargs=-1, required=True, metavar="CACHE...")
@click.argument("place", metavar="PLACE")
@click.option(
    "--i-have-the-rights",
    "rights",
    is_flag=True,
    help="You may pass on what these caches hold, although their licence does not say so.",
)
@transfers_option
@json_option
@quiet_option
def push(caches: Sequence[str], place: str, rights: bool, threads: int, as_json: bool, quiet: bool) -> None:
    """Copy caches (folders) to PLACE: a bucket (s3://…, gs://…), hf://datasets/OWNER/NAME, or a folder.

    Only what is not there yet is sent, a shard only counts once its record has followed it, and what is there is never
    replaced: repeat the command after an interruption. Caches of encoders whose licence forbids passing on their tokens
    (frostgrid cache ls says which) are not sent to a place that everybody can list or read.
    """
    from pipeline.naming import local_store
    from pipeline.sharing import refuse_unlicensed
    from store.places import open_place
    from store.sharing import push as push_store

    stores = [local_store(cache) for cache in caches]
    target = open_place(place if "://" in place else Path(place).absolute())
    for store in stores:
        refuse_unlicensed(store.slug, store.provenance, target, rights=rights, remedy=RIGHTS)
    talk = Talk(quiet=quiet)
    done = []
    for store in stores:
        with talk.bar(f"Sending {store.path.name}", "bytes") as update:
            copied = push_store(store, target, threads=threads, on_progress=update)
        name = f"{store.slug}-{store.key[:12]}"
        done.append(_told(name, f"{place.rstrip('/')}/{name}", copied, talk, as_json=as_json))
    if as_json:
        print_json(done)


@click.command()
@click.argument("place", metavar="PLACE")
@required_study_option("The study whose caches are meant: they are recognised by what made them.")
@encoder_option
@cache_root_option
@click.option("--no-views", is_flag=True, help="Without the views store (the masks), which training needs.")
@click.option(
    "--only-needed",
    is_flag=True,
    help="Only the shards that hold views of the study; its images have to be here.",
)
@weights_option
@cached_dtype_option
@runs_option
@transfers_option
@json_option
@quiet_option
def pull(
    place: str,
    study: Study,
    encoders: Sequence[str],
    root: Path,
    no_views: bool,
    only_needed: bool,
    weights: Path | None,
    dtype: AskedDtype | None,
    runs: Path,
    threads: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fetch from PLACE the caches that fit a study, as far as they are not here; every shard is checked as it arrives.

    Where PLACE is one cache, that one and the masks beside it are fetched. Repeat the command after an interruption: it
    goes on where it was. What is here is never replaced.
    """
    from pipeline.naming import place_or_cache
    from pipeline.sharing import offers_for
    from pipeline.workspace import Workspace
    from store.sharing import pull as pull_offer

    work = Workspace(study, root, runs, threads, dtype or "auto")
    talk = Talk(quiet=quiet)
    at, only = place_or_cache(place)
    found = offers_for(work, at, encoders, weights, talk, masks=not no_views, only=only)
    done = []
    for offer in found:
        needed = work.keys_of(offer.slug) if only_needed else None
        with talk.bar(f"Fetching {offer.folder}", "bytes") as update:
            copied = pull_offer(offer, root, views=needed, threads=threads, on_progress=update)
        done.append(_told(offer.folder, str(copied.store.path), copied, talk, as_json=as_json))
    if as_json:
        print_json(done)


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("into", type=LocalPath(file_okay=False), metavar="INTO")
@transfers_option
@json_option
@quiet_option
def merge(source: str, into: Path, threads: int, as_json: bool, quiet: bool) -> None:
    """Add the caches of FROM (a folder of caches, one cache, or a URL of either) to the folder INTO.

    Two halves of one cache become a whole: shards that both have are kept, the others are copied and checked. Exit
    status 4 where a cache of FROM cannot be read; the others are merged.
    """
    from pipeline.naming import offers_of
    from store.sharing import pull as pull_offer

    found, faults = offers_of(source)
    talk = Talk(quiet=quiet)
    done = []
    for offer in found:
        with talk.bar(f"Merging {offer.folder}", "bytes") as update:
            copied = pull_offer(offer, into, threads=threads, on_progress=update)
        done.append(_told(offer.folder, str(copied.store.path), copied, talk, as_json=as_json))
    if as_json:
        print_json({"caches": done, "faults": [str(fault) for fault in faults]})
    for fault in faults:
        click.echo(f"Error: {fault}", err=True)
    if faults:
        raise SystemExit(4)


def _told(cache: str, to: str, copied: Copied, talk: Talk, *, as_json: bool) -> dict[str, Any]:
    """Say what was copied, on stdout unless JSON follows there; return it as JSON-able values."""
    if not as_json:
        click.echo(
            f"{cache}: {copied.shards} shard(s), {bytes_text(copied.bytes)} copied, {copied.kept} were there ({to})"
        )
    return {"cache": cache, "to": to, "shards": copied.shards, "bytes": copied.bytes, "kept": copied.kept}
