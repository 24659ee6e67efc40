"""Time two calls in alternation, so that a slow phase of the machine slows both."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.benchmark import timer  # waits for the accelerator

Call = Callable[[], dict[str, float]]
"""Runs once; returns the seconds of its parts by name."""


@dataclass
class Measurement:
    """Values of a model and, pair by pair, of the model that it is compared with."""

    what: str
    """For example 'training step'."""
    unit: str
    """'s', 'bytes', 'FLOPs', or '' for a count."""
    model: list[float]
    against: list[float] | None = None
    """None without a comparison."""
    setting: Mapping[str, Any] = field(default_factory=dict)
    """Batch size, dtype, ...; empty if the values do not depend on them."""

    @property
    def ratios(self) -> list[float]:
        """Model over the other, pair by pair."""
        return [a / b for a, b in zip(self.model, self.against or [], strict=bool(self.against))]

    @property
    def ratio(self) -> float | None:
        """Median of the ratios."""
        return statistics.median(self.ratios) if self.against else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the median ratio; None for fewer than six pairs."""
        return median_interval(self.ratios)

    def to_json(self) -> dict[str, Any]:
        """Return medians of both, the ratio with its spread, and every value."""
        return {
            'what': self.what,
            'unit': self.unit,
            **self.setting,
            'model': statistics.median(self.model),
            'against': statistics.median(self.against) if self.against else None,
            'ratio': self.ratio,
            'interval': self.interval,
            'ratios': self.ratios,
            'values': {'model': self.model, 'against': self.against},
        }


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the order statistics that cover the median with 95 %, for any distribution.

    The k-th smallest of n values exceeds the median with the probability that fewer than k of n tosses
    of a coin are heads. None where n is too small.
    """
    from scipy.stats import binom

    ordered, count = sorted(values), len(values)
    k = int(binom.ppf(0.025, count, 0.5)) if count else 0
    if binom.cdf(k, count, 0.5) <= 0.025:
        k += 1
    return (ordered[k - 1], ordered[count - k]) if k else None


def timed(what: str, function: Callable[[], Any]) -> Call:
    """Return a call that times `function` under the name `what`."""

    def call() -> dict[str, float]:
        start = timer()
        function()
        return {what: timer() - start}

    return call


def time_pairs(model: Call, against: Call, pairs: int, warm_up: int = 1) -> list[Measurement]:
    """Time two calls in pairs, A B B A A B ..., after `warm_up` calls of each.

    Returns:
        A measurement for each part of the calls; run i of one makes a pair with run i of the other.
    """
    calls = (model, against)
    for call in calls * warm_up:
        call()
    runs: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    for index in range(pairs):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            runs[which].append(calls[which]())
    ours, others = runs
    return [
        Measurement(what, 's', [run[what] for run in ours], [run[what] for run in others])
        for what in ours[0]
    ]


def time_alone(call: Call, runs: int, warm_up: int = 1) -> list[Measurement]:
    """Time a call without a comparison, `runs` times after `warm_up` calls."""
    for _ in range(warm_up):
        call()
    results = [call() for _ in range(runs)]
    return [Measurement(what, 's', [run[what] for run in results]) for what in results[0]]
