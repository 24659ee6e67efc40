"""What is measured on a pair of models, and the statistics of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Measurement:
    """Values of a model and, run by run, of the model that it is compared with.

    Attributes:
        what: What was measured, e.g. 'training step'.
        unit: 's', 'bytes', 'FLOPs', or '' for a count.
        model: A value per run.
        against: A value per run, of the run that made a pair with the model's; None where there is
            nothing to compare with.
        setting: What the value depends on (batch size, dtype, ...); empty where it is nothing.
    """

    what: str
    unit: str
    model: list[float]
    against: list[float] | None = None
    setting: Mapping[str, Any] = field(default_factory=dict)

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
        """A row for JSON: medians of both, the ratio with its spread, and every single value."""
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


def median_interval(
    values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """The narrowest pair of order statistics that covers the median, whatever the distribution.

    The median lies below the k-th smallest of n values with the probability that fewer than k of n
    tosses of a coin come up heads.

    Returns:
        The interval, or None where n is too small for the confidence.
    """
    ordered = sorted(values)
    count, outside, k = len(ordered), 0.0, 0
    while k < count:
        outside += 2 * math.comb(count, k) / 2**count
        if outside > 1 - confidence:
            break
        k += 1
    return (ordered[k - 1], ordered[count - k]) if k else None
