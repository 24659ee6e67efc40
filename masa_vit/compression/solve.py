"""Fit all projections of a model, and split a budget between atoms and residuals."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from masa_vit.compression.fit import (
    Fit,
    Pairs,
    fit_atoms,
    low_rank,
    no_residual,
    scale_for_training,
    spectra,
)
from masa_vit.compression.metric import Metric
from masa_vit.compression.pca import matrix_pca

_logger = logging.getLogger(__name__)

ALLOCATIONS = ('energy', 'uniform')
"""Ways to give ranks to the layers' residuals."""

Weights = Mapping[str, Sequence[torch.Tensor]]
"""Projection -> the weights (out, in) of all layers."""


Shared = tuple[torch.Tensor, torch.Tensor]
"""Atoms (S, out, in) and coefficients (L, S) of a group."""


class Sharing(NamedTuple):
    """What a compressed model consists of."""

    groups: list[list[int]]
    num_atoms: dict[str, list[int]]
    """Projection -> S of each group."""
    ranks: dict[str, list[int]]
    """Projection -> k of each layer."""


class Solution(NamedTuple):
    """Atoms, coefficients and residuals of a model."""

    sharing: Sharing
    fits: dict[str, list[Fit]]
    """Projection -> the fit of each group."""
    cost: float
    """What is lost, over what there was, in the metric of the fit."""
    sweeps: int
    """How often atoms and residual were fitted in turn."""


class Ranks(NamedTuple):
    """Ranks to be found: as many as `numbers` parameters pay for."""

    allocation: str
    numbers: int


def solve(
    weights: Weights,
    groups: list[list[int]],
    num_atoms: int,
    ranks: Mapping[str, Sequence[int]] | Ranks | None = None,
    metrics: Mapping[str, Metric] | None = None,
    sweeps: int = 1,
) -> Solution:
    """Fit every projection: atoms for each group, and residuals.

    One sweep is the paper's way: atoms, then the residual of what they leave. More sweeps fit the two
    in turn, from two starts, of which the better one is kept: with the atoms fitted first, and with
    the residuals first (ours; weights that are nearly of low rank are better served by the second).

    Args:
        weights: Of the projections that share.
        groups: Of layers.
        num_atoms: S of each group; at most its number of layers is used.
        ranks: Of the residuals, given or to be found; None: no residuals.
        metrics: Cost of an error; None: all directions alike.
        sweeps: How often the two are fitted.
    """
    numbers = {name: [min(num_atoms, len(g)) for g in groups] for name in weights}
    if ranks is None:
        return _atoms_alone(weights, groups, numbers, metrics)
    full = {name: torch.stack([w.double() for w in rows]) for name, rows in weights.items()}
    problem = _Problem(full, groups, numbers, ranks, metrics or {})
    runs = [problem.run(residual_first=False, sweeps=sweeps)]
    if sweeps > 1:
        runs.append(problem.run(residual_first=True, sweeps=sweeps))
    return min(runs, key=lambda run: run.cost)


def _atoms_alone(
    weights: Weights,
    groups: list[list[int]],
    numbers: dict[str, list[int]],
    metrics: Mapping[str, Metric] | None,
) -> Solution:
    fits: dict[str, list[Fit]] = {}
    lost = total = 0.0
    for name, rows in weights.items():
        fits[name] = []
        for layers, number in zip(groups, numbers[name], strict=True):
            of_group = [rows[layer] for layer in layers]
            none = [no_residual(of_group[0])] * len(layers)
            if metrics is None:  # no copy of the weights in float64
                try:
                    pca = matrix_pca(of_group, number)
                except ValueError as error:
                    raise ValueError(f'projection {name!r}: {error}') from None
                fits[name].append(Fit(*scale_for_training(pca.atoms, pca.coef), none))
                lost += float(pca.eigenvalues[number:].sum())
                total += float(pca.eigenvalues.sum())
            else:
                metric = metrics[name].of(layers)
                stacked = torch.stack(of_group).double()
                fit = Fit(*scale_for_training(*fit_atoms(stacked, number, metric)), none)
                fits[name].append(fit)
                lost += float(metric.energy(stacked - fit.shared()).sum())
                total += float(metric.energy(stacked).sum())
    sharing = Sharing(groups, numbers, {name: [0] * len(rows) for name, rows in weights.items()})
    return Solution(sharing, fits, lost / max(total, 1e-300), 1)


class _Problem:
    """Atoms and residuals of all projections, fitted in turn."""

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        groups: list[list[int]],
        numbers: dict[str, list[int]],
        ranks: Mapping[str, Sequence[int]] | Ranks,
        metrics: Mapping[str, Metric],
    ) -> None:
        self.weights, self.groups, self.numbers = weights, groups, numbers
        self.ranks, self.metrics = ranks, metrics

    def run(self, residual_first: bool, sweeps: int) -> Solution:
        shared = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        own = dict(shared)
        atoms: dict[str, list[Shared]] = {}
        if residual_first:
            own, pairs, ranks = self._fit_residuals(shared)
        for _ in range(sweeps):
            for name, weight in self.weights.items():
                started = atoms.get(name, [None] * len(self.groups))
                atoms[name], shared[name] = self._fit_atoms(name, weight - own[name], started)
            own, pairs, ranks = self._fit_residuals(shared)
        fits = {
            name: [
                Fit(*scale_for_training(*pair), [pairs[name][layer] for layer in layers])
                for pair, layers in zip(atoms[name], self.groups, strict=True)
            ]
            for name in self.weights
        }
        left = {name: weight - shared[name] - own[name] for name, weight in self.weights.items()}
        cost = self._cost(left) / max(self._cost(self.weights), 1e-300)
        return Solution(Sharing(self.groups, self.numbers, ranks), fits, cost, sweeps)

    def _fit_atoms(
        self,
        name: str,
        weight: torch.Tensor,
        started: Sequence[Shared | None],
    ) -> tuple[list[Shared], torch.Tensor]:
        found, shared = [], torch.empty_like(weight)
        metric = self.metrics.get(name, Metric())
        for layers, number, start in zip(self.groups, self.numbers[name], started, strict=True):
            pair = fit_atoms(weight[layers], number, metric.of(layers), start)
            found.append(pair)
            shared[layers] = Fit(*pair, []).shared()
        return found, shared

    def _fit_residuals(
        self, shared: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Pairs], dict[str, list[int]]]:
        left = {name: weight - shared[name] for name, weight in self.weights.items()}
        if isinstance(self.ranks, Ranks):
            ranks = allocate(left, self.metrics, self.ranks)
        else:
            ranks = {name: list(of_name) for name, of_name in self.ranks.items()}
        pairs = {
            name: low_rank(weight, self.metrics.get(name), ranks[name])
            for name, weight in left.items()
        }
        own = {name: torch.stack([u @ v for u, v in of_name]) for name, of_name in pairs.items()}
        return own, pairs, ranks

    def _cost(self, weights: Mapping[str, torch.Tensor]) -> float:
        return sum(
            float(self.metrics.get(name, Metric()).energy(weight).sum())
            for name, weight in weights.items()
        )


def allocate(
    weights: Mapping[str, torch.Tensor], metrics: Mapping[str, Metric], ranks: Ranks
) -> dict[str, list[int]]:
    """Give ranks to the residuals of all layers and projections, paid from one purse.

    A rank costs (out + in) parameters. 'energy': the largest singular values first, for their price;
    'uniform': every weight gets the same.

    Args:
        weights: What the residuals are to approximate, (L, out, in).
        metrics: Cost of an error.
        ranks: The way, and how many parameters there are.
    """
    prices = {name: sum(weight.shape[1:]) for name, weight in weights.items()}
    depth = len(next(iter(weights.values())))
    if ranks.allocation == 'uniform':
        most = min(min(weight.shape[1:]) for weight in weights.values())
        rank = min(ranks.numbers // (depth * sum(prices.values())), most)
        return {name: [rank] * depth for name in weights}
    gains = []
    for name, weight in weights.items():
        energies = spectra(weight, metrics.get(name)).square() / prices[name]
        gains += [
            (-gain, name, layer)
            for layer, of_layer in enumerate(energies.tolist())
            for gain in of_layer
        ]
    found = {name: [0] * depth for name in weights}
    purse = ranks.numbers
    for _, name, layer in sorted(gains):
        if prices[name] > purse:
            break
        found[name][layer] += 1
        purse -= prices[name]
    return found


def solve_budget(
    weights: Weights,
    groups: list[list[int]],
    numbers: int,
    num_atoms: int | None,
    allocation: str,
    metrics: Mapping[str, Metric] | None,
    sweeps: int,
) -> Solution:
    """Find atoms and residuals of at most `numbers` parameters with the least cost.

    Args:
        weights: Of the projections that share.
        groups: Of layers.
        numbers: Parameters that atoms, coefficients and residuals may have.
        num_atoms: S; None: the best one is searched.
        allocation: Of the ranks; see `allocate`.
        metrics: Cost of an error.
        sweeps: See `solve`.

    Raises:
        ValueError: If one atom for each group and projection costs more than that.
    """
    largest = max(len(group) for group in groups)
    candidates = range(1, largest + 1) if num_atoms is None else [num_atoms]
    solutions = []
    for number in candidates:
        left = numbers - price_of_atoms(weights, groups, number)
        if left < 0:
            break
        solution = solve(weights, groups, number, Ranks(allocation, left), metrics, sweeps)
        _logger.info('%d atoms: %.4g of the energy is lost', number, solution.cost)
        solutions.append(solution)
        if len(solutions) > 2 and solutions[-1].cost > solutions[-2].cost > solutions[-3].cost:
            break
    if not solutions:
        raise _too_small(weights, groups, numbers, candidates[0])
    return min(solutions, key=lambda solution: solution.cost)


def most_atoms(weights: Weights, groups: Sequence[Sequence[int]], numbers: int) -> int:
    """The most atoms that `numbers` parameters pay for, alike in all groups and projections.

    Raises:
        ValueError: If they do not pay for one.
    """
    fitting = [
        number
        for number in range(1, max(map(len, groups)) + 1)
        if price_of_atoms(weights, groups, number) <= numbers
    ]
    if not fitting:
        raise _too_small(weights, groups, numbers, 1)
    return fitting[-1]


def _too_small(
    weights: Weights, groups: Sequence[Sequence[int]], numbers: int, number: int
) -> ValueError:
    return ValueError(
        f'the budget leaves {numbers:,} parameters for the projections {"".join(weights)!r}, and '
        f'{number} atom{"s" * (number > 1)} for each of {len(groups)} groups of layers cost '
        f'{price_of_atoms(weights, groups, number):,}: raise the budget, or use fewer groups'
    )


def price_of_atoms(weights: Weights, groups: Sequence[Sequence[int]], num_atoms: int) -> int:
    """Parameters of S atoms for each group and projection, and of their coefficients."""
    return sum(
        min(num_atoms, len(group)) * (rows[0].numel() + len(group))
        for rows in weights.values()
        for group in groups
    )
