"""Statistics of runs with several seeds: means, paired differences, and the seeds that one needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class PairedDifference:
    """Difference of a row to the reference over the seeds that both have."""

    num_seeds: int
    mean: float
    spread: float
    """Standard deviation of the differences; NaN for one seed."""
    low: float
    high: float
    """Ends of the 95 % interval of the mean (t distribution); infinite for one seed."""

    def verdict(self, bound: float | None = None) -> str:
        """Return 'higher', 'lower', 'equal' (inside +-`bound`) or 'not resolved'."""
        if bound is not None and -bound <= self.low and self.high <= bound:
            return 'equal'
        if self.low > 0:
            return 'higher'
        return 'lower' if self.high < 0 else 'not resolved'


def mean_and_spread(values: Mapping[int, float]) -> tuple[float, float]:
    """Return mean and standard deviation over seeds; the latter is NaN for one seed."""
    array = np.array([*values.values()], dtype=float)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float]
) -> PairedDifference | None:
    """Compare two rows, seed by seed; None if they have no seed in common.

    Args:
        values: Seed -> value of a row.
        reference: Seed -> value of the reference.
    """
    seeds = sorted(set(values) & set(reference))
    if not seeds:
        return None
    differences = np.array([values[seed] - reference[seed] for seed in seeds])
    mean, number = float(differences.mean()), len(seeds)
    if number == 1:
        return PairedDifference(1, mean, math.nan, -math.inf, math.inf)
    spread = float(differences.std(ddof=1))
    half = float(stats.t.ppf(0.975, number - 1)) * spread / math.sqrt(number)
    return PairedDifference(number, mean, spread, mean - half, mean + half)


def seeds_needed(spread: float, difference: float = 1.0, power: float = 0.8) -> int | None:
    """Return the number of pairs of runs that show a difference, at 5 %, with this probability.

    Args:
        spread: Standard deviation of the paired differences.
        difference: The difference of the means to be shown.
        power: Probability that the 95 % interval excludes zero.

    Returns:
        The number, or None above 10,000.
    """
    if not spread:
        return 2
    for number in range(2, 10_001):
        critical = stats.t.ppf(0.975, number - 1)
        shift = difference / spread * math.sqrt(number)
        if 1 - stats.nct.cdf(critical, number - 1, shift) >= power:
            return number
    return None
