"""The command of ``make bench``: run the chosen benchmarks and write their results."""

from __future__ import annotations

import json
import operator
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from bench.harness import BENCHMARKS, LIBRARIES, Setting, chosen, machine

MODULES = (
    "store_reading",
    "store_writing",
    "store_layout",
    "store_streaming",
    "decoder",
    "extraction",
    "sweep",
    "cluster",
)  # they run in this order
SAME = ("cpu", "cores", "threads", "python", *LIBRARIES)  # what all figures of one file have in common
_COMPARED = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_TARGET = re.compile(r"(>=|<=|>|<) ?([0-9]+(?:\.[0-9]+)?)\b")
LEAST_ROUNDS = 5  # a median of fewer says little
HERE = Path(__file__).parent


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--only", multiple=True, help="A group or a benchmark, e.g. store or store/single-views. Repeatable."
)
@click.option(
    "--rounds",
    default=9,
    show_default=True,
    type=click.IntRange(1),
    help=f"Rounds that are measured: {LEAST_ROUNDS} or more, but for --small.",
)
@click.option("--small", is_flag=True, help="Tiny sizes: shows that everything runs, measures nothing.")
@click.option(
    "--output",
    default=None,
    show_default="bench/results.json",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the results go; what other benchmarks have written there stays.",
)
@click.option(
    "--folder",
    default=HERE.parent / "build" / "bench",
    show_default="build/bench",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the data are made; they are kept for the next run.",
)
def main(only: tuple[str, ...], rounds: int, small: bool, output: Path | None, folder: Path) -> None:
    """Measure what is promised of speed and memory, ours and a reference in turn, in one process."""
    for module in MODULES:
        import_module(f"bench.{module}")  # which enters its benchmarks into the list
    selected = list(chosen(only))
    if not selected:
        raise click.UsageError(f"no benchmark of that name; there are {', '.join(BENCHMARKS)}")
    if rounds < LEAST_ROUNDS and not small:
        raise click.UsageError(f"{rounds} rounds say little: give {LEAST_ROUNDS} or more")
    setting = Setting(folder / ("small" if small else "full"), rounds, small)
    setting.folder.mkdir(parents=True, exist_ok=True)
    # Figures of tiny sizes are none, so they must not take the place of real ones.
    output = output or (setting.folder if small else HERE) / "results.json"
    results = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    here, before = machine(setting), results.get("machine", {})
    if other := [name for name in SAME if name in before and before[name] != here[name]]:
        raise click.UsageError(
            f"{output} was measured with another {', '.join(other)}: give another --output, or remove it"
        )
    results["machine"] = here
    for name, function in selected:
        result = function(setting)
        line = results[name] = result.to_json()
        reached = None if small else judged(line)
        spread = results[name].get("spread")
        around = f" ({spread[0]:.2f} to {spread[1]:.2f})" if spread else ""
        end = "" if reached is None else ": reached" if reached else ": MISSED"
        click.echo(f"{name:32} {results[name]['ratio']:8.3g}{around}, wanted {result.target}{end}")
    for line in [] if small else results.values():
        judged(line)  # those, too, that other runs have written
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def judged(line: dict[str, Any]) -> bool | None:
    """Enter into a line of the results whether its target is met, and return that; nothing for one without a number."""
    reached = met(line["ratio"], line["target"]) if "target" in line else None
    if reached is not None:
        line["met"] = reached
    return reached


def met(ratio: float, target: str) -> bool | None:
    """Return whether ``ratio`` is what ``target`` (">= 2.5", "<= 0.7") asks for; ``None`` for one without a number.

    Raises ``ValueError`` for a target that begins with neither a comparison nor "none".
    """
    wanted = _TARGET.match(target)
    if wanted:
        return bool(_COMPARED[wanted[1]](ratio, float(wanted[2])))
    if target.startswith("none"):
        return None
    raise ValueError(f"a target is '>= 2.5', '<= 0.7' or 'none: why', not {target!r}")


if __name__ == "__main__":
    main()
