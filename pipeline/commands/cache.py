"""The commands on feature caches."""

from __future__ import annotations

import click

from pipeline.commands.cache_copies import merge, pull, push
from pipeline.commands.cache_forms import convert, export, import_
from pipeline.commands.cache_looks import diff, info, ls
from pipeline.commands.cache_tidy import gc
from pipeline.commands.cache_verify import verify


@click.group()
def cache() -> None:
    """Look after feature caches, and share them: a folder of caches, or a URL of one, is a PLACE."""


for _command in (ls, info, verify, push, pull, merge, convert, export, import_, gc, diff):
    cache.add_command(_command)
