"""The command that finds what a folder of caches could do without: gc."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.commands.options import json_option, quiet_option, studies_option
from pipeline.console import Talk, bytes_text, print_json, print_table
from pipeline.study import Study
from store.errors import InputError


@click.command()
@click.argument("root", default="cache")
@studies_option("Studies that are to go on: the caches that none of them uses are listed, too (repeatable).")
@click.option(
    "--remove",
    "named",
    multiple=True,
    metavar="NAME",
    help="A whole cache that may go, of those that no study uses (repeatable).",
)
@click.option("--yes", is_flag=True, help="Remove; without it nothing is.")
@json_option
@quiet_option
def gc(
    root: str, studies: Sequence[Study], named: Sequence[str], yes: bool, as_json: bool, quiet: bool
) -> None:
    """List what the folder ROOT (default: cache) could do without, and why; remove it with --yes.

    Leftovers of writers that were killed, parts whose views are all in another part as well, and, where --study is
    given, caches that none of these studies uses. Whole caches are removed only if each is named with --remove.
    """
    from pipeline.commands.cache_tables import superfluous_table
    from pipeline.naming import is_url
    from pipeline.sharing import workspaces
    from pipeline.tidying import check_named, removed, superfluous

    if is_url(root):
        raise InputError(
            "Only a folder of this machine is cleaned up",
            where=root,
            remedy="Run it where that folder lies, or remove the objects with the tools of that service.",
        )
    folder = Path(root)
    if not folder.is_dir():
        raise InputError("There is no such folder of caches", where=root, remedy="Give another one.")
    if (folder / "cache.json").is_file():
        raise InputError(
            "This is one cache, not a folder of caches",
            where=root,
            remedy=f"Give the folder it lies in: {folder.absolute().parent}.",
        )
    talk = Talk(quiet=quiet)
    works, wrong = workspaces(studies)
    if wrong:
        raise wrong[0]
    found, faults = superfluous(folder, works)
    check_named(found, named, folder, studies=bool(studies))
    gone = removed(found, named) if yes else []
    rows = [
        {
            "path": str(one.what.path.relative_to(folder)),
            "kind": one.kind,
            "reason": one.what.reason,
            "bytes": one.what.bytes,
            "removed": one in gone,
            "done": "removed" if one in gone else "--remove and --yes" if one.asked_by_name else "--yes",
        }
        for one in found
    ]
    if as_json:
        listed = [{name: value for name, value in row.items() if name != "done"} for row in rows]
        print_json({"root": root, "found": listed, "faults": [str(fault) for fault in faults]})
    elif rows:
        print_table(superfluous_table(root, rows))
    else:
        click.echo(f"{root}: nothing to remove")
    if not yes and rows and not as_json:
        talk.say(f"{bytes_text(sum(one.what.bytes for one in found))} could go; nothing was removed")
    for fault in faults:
        click.echo(f"Error: {fault}", err=True)
    if faults:
        raise SystemExit(4)
