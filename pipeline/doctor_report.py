"""What :mod:`pipeline.doctor` found, as tables and sentences for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipeline.console import bytes_text
from stages.encoders import WEIGHTS_VARIABLE


def doctor_report(found: dict[str, Any]) -> list[Table | str]:
    """Return what :func:`pipeline.doctor.examine` found as tables and sentences for people."""
    parts: list[Table | str] = [_machine_table(found), _access_table(found["hub"])]
    if found["plugin_faults"]:
        parts.append(
            f"Installed encoders and decoders that cannot be used:\n{_lines(found['plugin_faults'])}"
        )
    return parts if found["study"] is None else [*parts, *_study_parts(found["study"])]


def _lines(faults: Sequence[dict[str, Any]]) -> str:
    return "\n".join(
        f"  - {fault['what']} [{fault['where']}]. {fault['remedy'] or ''}".rstrip() for fault in faults
    )


def _folder_text(folder: dict[str, Any] | None) -> str:
    if folder is None:
        return "not set"
    if not folder["exists"]:
        return f"{folder['folder']}: {folder['fault']}"
    return f"{folder['folder']}: weights of {', '.join(folder['holds']) or 'none of the encoders'}"


def _machine_table(found: dict[str, Any]) -> Table:
    table = Table(title="This machine", show_header=False)
    table.add_column()
    table.add_column()
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    gpus = [
        f"{gpu['name']}, {bytes_text(gpu['free'])} of {bytes_text(gpu['total'])} free"
        for gpu in found["gpus"]
    ]
    cache, hub = found["cache"], found["hub"]
    reachable = {
        True: "answers",
        False: "cannot be reached (offline?)",
        None: "not asked: HF_HUB_OFFLINE is set",
    }
    for name, value in (
        ("Python", f"{found['python']} on {found['system']}"),
        ("packages", packages),
        ("GPU", "\n".join(gpus) or "none: encoders run on the CPU"),
        (
            "CPU",
            f"{found['cpu_threads']} threads, {bytes_text(found['memory']['available'])} of memory available",
        ),
        (
            "caches",
            f"{cache['folder']}: {bytes_text(cache['free'])} of {bytes_text(cache['total'])} free"
            + ("" if cache["writable"] else ", not writable"),
        ),
        ("Hub", f"{hub['endpoint']} {reachable[hub['reachable']]}; weights are kept in {hub['cache']}"),
        (WEIGHTS_VARIABLE, _folder_text(found["weights_folder"])),
        ("Hub token", "present" if hub["token"] else "none (HF_TOKEN, or: hf auth login)"),
    ):
        table.add_row(name, escape(value))
    return table


def _access_table(hub: dict[str, Any]) -> Table | str:
    if hub["reachable"] is not True:
        return "Access to gated encoders: not known, since the Hub was not reached."
    table = Table(title="Gated encoders on the Hub")
    for name in ("encoder", "repository", "access", "next step"):
        table.add_column(name)
    for row in hub["gated"]:
        table.add_row(row["encoder"], row["repo"], row["access"], row["remedy"] or "")
    return table


def _study_parts(study: dict[str, Any]) -> list[Table | str]:
    table = Table(title=f"{study['name']}: {study['images']} images, caches in {study['cache']}")
    for name in ("encoder", "weights", "cached views"):
        table.add_column(name)
    for row in study["encoders"]:
        weights = row["weights"] or ("not needed" if not row["needed"] else "none")
        cached = (
            f"{row['views_cached']} of {row['views_planned']} planned" if row["cached"] else "no cache yet"
        )
        table.add_row(row["name"], escape(weights), cached)
    if not study["faults"]:
        return [table, f"{study['name']} can run."]
    return [table, f"{study['name']} cannot run as it is:\n{_lines(study['faults'])}"]
