"""What statistics say, in sentences that need no statistics to be read."""

from __future__ import annotations

from collections.abc import Sequence

from stages.evidence.comparing import Comparison
from stages.evidence.resampling import LEVEL, Interval


def comparison_sentence(found: Comparison, images: str, comparisons: int) -> str:
    """Return one plain sentence on one comparison.

    ``images`` is what it was made on, such as ``10 images``; ``comparisons`` are those that were tested together.
    """
    if not found.seeds:
        return f"{found.a} and {found.b} have no seed in common, and are not compared."
    if found.interval is None or found.p is None or found.p_holm is None:
        return f"{found.a} and {found.b} cannot be compared on {images}: nothing tells how they would do on others."
    corrected = p_phrase(found.p_holm)
    if comparisons > 1:
        corrected += f" after correction for {comparisons} comparisons"
    apart = f"{100 * abs(found.difference):.2f} points, {_reach(found.interval)}, {corrected}"
    if not found.all_seeds:
        count = len(found.seeds)
        apart += f"; over the {'seed' if count == 1 else f'{count} seeds'} that both have"
    if found.told_apart:
        sentence = f"{found.a} segments better than {found.b} on these {images} ({apart})."
    else:
        sentence = f"{found.a} and {found.b} cannot be told apart on these {images} ({apart})."
        if found.p < 1 - LEVEL:
            sentence += " As the only comparison they would be."
    return sentence


def p_text(p: float) -> str:
    """Return a p value as people read it."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def p_phrase(p: float) -> str:
    """Return a p value as it stands in a sentence: ``p = 0.02`` or ``p < 0.001``."""
    text = p_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def seeds_text(seeds: Sequence[int]) -> str:
    """Return seeds, one or more, as a sentence has them: ``seed 0``, ``seeds 0 and 1``."""
    return f"seed{'s' if len(seeds) > 1 else ''} {listed([str(seed) for seed in seeds])}"


def _reach(interval: Interval) -> str:
    return f"95 % interval {100 * interval.low:.2f} to {100 * interval.high:.2f}".replace("-", "−")
