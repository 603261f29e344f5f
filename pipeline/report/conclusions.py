"""What a summary says in sentences: the answer to the study's question, and every reason to doubt it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.evidence import FEW_CLUSTERS, LEAST_RESAMPLES
from stages.evidence.words import listed, seeds_text

NAMED = 6  # encoders or runs, in one sentence


def answer(summary: Mapping[str, Any]) -> str:
    """Return which encoder did best, how sure that is, and which others cannot be told apart from it."""
    best = summary["results"][0]
    evidence = summary["evidence"]
    seeds = len(best["seeds"])
    about = (
        f"{percent_text(best['mean_dice']['mean'])} on {evidence['sample']}, mean of {seeds} seed{_s(seeds)}"
    )
    ci = best["mean_dice"]["ci"]
    if ci is not None:
        about += f", 95 % interval {100 * ci[0]:.1f} to {100 * ci[1]:.1f}"
    if len(summary["results"]) == 1:
        return f"{best['encoder']} reaches a mean test Dice of {about}. There is no other encoder to compare it with."
    text = f"{best['encoder']} has the highest mean test Dice: {about}."
    if best["rank"] is None:
        if not evidence["ranked_seeds"]:
            return f"{text} No seed was trained on all encoders, so that they are not ranked."
        return f"{text} These images cannot tell whether others would rank them alike."
    first = 100 * best["rank"]["first"]
    text += f" It is first in {first:.0f} % of {evidence['resamples']} resamples of the test images"
    everyone = {seed for row in summary["results"] for seed in row["seeds"]}
    if everyone > set(evidence["ranked_seeds"]):
        text += f", over {seeds_text(evidence['ranked_seeds'])} alone, which all encoders have"
    text += "."
    mine = [one for one in evidence["comparisons"] if best["encoder"] in (one["a"], one["b"])]
    alike = [_other(one, best["encoder"]) for one in mine if not one["told_apart"]]
    worse = [one["b"] for one in mine if one["told_apart"] and one["a"] == best["encoder"]]
    better = [one["a"] for one in mine if one["told_apart"] and one["b"] == best["encoder"]]
    over = "" if all(one["all_seeds"] for one in mine) else " over the seeds that both have"
    if alike:
        text += f" Not told apart from it{over}: {_few(alike)}."
    if worse:
        text += f" Worse beyond chance{over}: {_few(worse)}."
    if better:
        text += f" Better beyond chance{over}: {_few(better)}."
    return text


def _other(pair: Mapping[str, Any], name: str) -> str:
    return str(pair["b"] if pair["a"] == name else pair["a"])


def notes(summary: Mapping[str, Any]) -> list[str]:
    """Return a sentence for everything that is missing, damaged, or too little to conclude from."""
    evidence = summary["evidence"]
    found = [
        f"The run of {one['encoder']}, seed {one['seed']}, is damaged and was left out: {one['what']}"
        for one in summary["damaged"]
    ]
    for row in summary["results"]:
        damaged = {one["seed"] for one in summary["damaged"] if one["encoder"] == row["encoder"]}
        missing = [seed for seed in row["missing_seeds"] if seed not in damaged]
        if missing:
            planned = len(row["seeds"]) + len(row["missing_seeds"])
            found.append(
                f"{row['encoder']} has {len(row['seeds'])} of {planned} seeds: no finished run of "
                f"{seeds_text(missing)}. Its means are those "
                "of the seeds that it has; it is compared with others over the seeds that both have."
            )
    if summary["without_runs"]:
        found.append(
            "No finished run with the settings of the study, and so in none of the tables of encoders: "
            f"{listed(summary['without_runs'])}."
        )
    single = [one for one in evidence["comparisons"] if one["seeds"] == 1]
    if summary["results"] and all(len(row["seeds"]) == 1 for row in summary["results"]):
        found.append(
            "There is one seed: nothing tells how much of a difference is the luck of its first weights."
        )
    elif single:
        pairs = [f"{one['a']} against {one['b']}" for one in single]
        found.append(
            "Compared over one seed alone, of which nothing tells how much is the luck of its first weights: "
            f"{_few(pairs)}."
        )
    clusters = evidence["clusters"]
    if clusters > 1 and evidence["resamples"] < LEAST_RESAMPLES:
        found.append(
            "Some classes are on so few test images that hardly any resample has them all: there are no intervals."
        )
    if clusters == 1:
        one = evidence["unit"].removesuffix("s")
        found.append(
            f"All test tiles are of one {one}: there are no intervals, and no encoder can be compared with another."
        )
    elif clusters < FEW_CLUSTERS:
        found.append(
            f"The test set has {clusters} independent {evidence['unit']}. With fewer than {FEW_CLUSTERS}, intervals "
            "come out too narrow and p values are no guide: take them as a hint."
        )
    for name, holding in evidence["holding"].items():
        if holding == 0:
            found.append(
                f"No test tile has the class {name}: it is in no mean, and its own Dice says only whether an encoder "
                "predicts it anywhere (0) or nowhere (–)."
            )
        elif holding < FEW_CLUSTERS <= clusters:
            found.append(
                f"Only {holding} of {clusters} test {evidence['unit']} {'has' if holding == 1 else 'have'} the class "
                f"{name}: its interval rests on few."
            )
    return found


def percent_text(value: float | None) -> str:
    """Return a share in per cent, with two digits."""
    return "–" if value is None else f"{100 * value:.2f} %"


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _few(names: list[str]) -> str:
    if len(names) <= NAMED:
        return listed(names)
    return listed([*names[: NAMED - 1], f"{len(names) - NAMED + 1} more"])
