"""How sure a benchmark is: intervals, paired comparisons and ranks, from the counts of every tile and seed."""

from stages.evidence.assess import Evidence, assess
from stages.evidence.by_seed import BySeed, common_seeds
from stages.evidence.comparing import Comparison, compare_all, holm
from stages.evidence.ranks import Rank
from stages.evidence.resampling import (
    FEW_CLUSTERS,
    LEAST_RESAMPLES,
    LEVEL,
    RESAMPLES,
    Interval,
    Resampling,
    percentile_interval,
)

__all__ = [
    "FEW_CLUSTERS",
    "LEAST_RESAMPLES",
    "LEVEL",
    "RESAMPLES",
    "BySeed",
    "Comparison",
    "Evidence",
    "Interval",
    "Rank",
    "Resampling",
    "assess",
    "common_seeds",
    "compare_all",
    "holm",
    "percentile_interval",
]
