"""Give ranks to the residuals of all layers and projections."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch

from masa_vit.compression.fit import spectra
from masa_vit.compression.metric import Metric

ALLOCATIONS = ('energy', 'uniform')
"""Ways to do it."""

_NOTHING = 1e-12
"""Energies below this share of the largest are rounding: no rank is spent on them."""


class Ranks(NamedTuple):
    """Ranks to be found: as many as `numbers` parameters pay for."""

    allocation: str
    numbers: int


def allocate(
    weights: Mapping[str, torch.Tensor],
    metrics: Mapping[str, Metric],
    ranks: Ranks,
    exact: Mapping[str, Collection[int]] | None = None,
) -> dict[str, list[int]]:
    """Allocate ranks within one budget.

    A rank costs (out + in) parameters. 'energy': the largest singular values first, by their cost;
    'uniform': every weight gets the same. No weight gets more than it would cost to store it dense.

    Args:
        weights: What the residuals are to approximate, (L, out, in).
        metrics: Cost of an error.
        ranks: The way, and how many parameters there are.
        exact: Projection -> layers that need no residual.
    """
    exact = exact or {}
    depth = len(next(iter(weights.values())))
    costs = {name: sum(weight.shape[1:]) for name, weight in weights.items()}
    most = {name: weight[0].numel() // costs[name] for name, weight in weights.items()}
    takers = {
        name: [layer for layer in range(depth) if layer not in exact.get(name, ())]
        for name in weights
    }
    found = {name: [0] * depth for name in weights}
    if ranks.allocation == 'uniform':
        cost = sum(costs[name] * len(layers) for name, layers in takers.items())
        for name, layers in takers.items():
            for layer in layers:
                found[name][layer] = min(ranks.numbers // max(cost, 1), most[name])
        return found
    gains = []
    for name, weight in weights.items():
        energies = spectra(weight, metrics.get(name)).square() / costs[name]
        for layer in takers[name]:
            gains += [(-gain, name, layer) for gain in energies[layer, : most[name]].tolist()]
    gains.sort()
    budget = ranks.numbers
    for gain, name, layer in gains:
        if costs[name] > budget or gain > _NOTHING * gains[0][0]:
            break
        found[name][layer] += 1
        budget -= costs[name]
    return found
