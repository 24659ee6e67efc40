"""Fit atoms and residuals of all projections."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from masa_vit.compression.budget import (
    RankBudget,
    allocate,
    atom_parameters,
    numbers_of_groups,
    too_small,
)
from masa_vit.compression.fit import (
    Fit,
    Pairs,
    fit_atoms,
    low_rank,
    no_residual,
    scale_for_training,
)
from masa_vit.compression.groups import Groups
from masa_vit.compression.metric import Metric
from masa_vit.compression.pca import matrix_pca
from masa_vit.compression.source_weights import Weights, stack

_logger = logging.getLogger(__name__)


class Sharing(NamedTuple):
    """The sizes of a compressed model."""

    groups: Groups
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
    """Energy of the error over that of the weights, in the metric of the fit."""
    sweeps: int
    """Number of alternations between atoms and residuals."""


def solve(
    weights: Weights,
    groups: Groups,
    num_atoms: int | Sequence[int],
    ranks: Mapping[str, Sequence[int]] | RankBudget | None = None,
    metrics: Mapping[str, Metric] | None = None,
    sweeps: int = 1,
) -> Solution:
    """Fit every projection: atoms for each group, and residuals.

    One sweep is the paper's way: atoms, then the residual of their error. More sweeps alternate, from
    the better of two starts: atoms first, or residuals first (ours; better for weights that are nearly
    of low rank). Layers of a group with an atom for each get no residual.

    Args:
        weights: Of the projections that share.
        groups: Of layers.
        num_atoms: S, of all groups or each; at most its number of layers is used.
        ranks: Of the residuals, given or to be found; None: no residuals.
        metrics: Cost of an error; None: all directions alike.
        sweeps: Number of alternations.
    """
    numbers = numbers_of_groups(groups, num_atoms)
    if ranks is None:
        return _solve_atoms(weights, groups, numbers, metrics)
    problem = _Problem(weights, groups, numbers, ranks, metrics or {})
    return problem.start(sweeps).refine(sweeps - 1)


def solve_budget(
    weights: Weights,
    groups: Groups,
    ranks: RankBudget,
    num_atoms: int | Sequence[int] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    sweeps: int = 4,
) -> Solution:
    """Find the split of a budget between atoms and residuals with the least cost.

    Every number of atoms is tried for one sweep, until two more in a row have cost more; the best is
    refined.

    Args:
        weights: As `solve`.
        groups: As `solve`.
        ranks: Allocation, and the parameters of atoms, coefficients and residuals together.
        num_atoms: S; None: to be found.
        metrics: As `solve`.
        sweeps: As `solve`.

    Raises:
        ValueError: If one atom for each group and projection exceeds the budget.
    """
    largest = max(map(len, groups))
    candidates = range(1, largest + 1) if num_atoms is None else [num_atoms]
    problems: list[_Problem] = []
    for candidate in candidates:
        left = ranks.parameters - atom_parameters(weights, groups, candidate)
        if left < 0:
            break
        given = ranks._replace(parameters=left)
        numbers = numbers_of_groups(groups, candidate)
        problems.append(_Problem(weights, groups, numbers, given, metrics or {}).start(sweeps))
        costs = [problem.cost for problem in problems]
        _logger.info(
            '%s atoms a dictionary: %.2f %% of the energy is lost', candidate, 100 * costs[-1]
        )
        # the cost over S is nearly convex; one increase may be the rounding of ranks
        if len(costs) >= 3 and costs[-3] < costs[-2] < costs[-1]:
            break
    if not problems:
        raise too_small(weights, groups, ranks.parameters, next(iter(candidates)))
    return min(problems, key=lambda problem: problem.cost).refine(sweeps - 1)


def _solve_atoms(
    weights: Weights,
    groups: Groups,
    numbers: list[int],
    metrics: Mapping[str, Metric] | None,
) -> Solution:
    """Fit atoms without residuals; without metrics no copy of the weights in float64 is made."""
    fits: dict[str, list[Fit]] = {name: [] for name in weights}
    lost = total = 0.0
    for name, rows in weights.items():
        for layers, number in zip(groups, numbers, strict=True):
            of_group = [rows[layer] for layer in layers]
            none = [no_residual(of_group[0])] * len(layers)
            if metrics is None:
                pca = matrix_pca(of_group, number)
                fit = Fit(*scale_for_training(pca.atoms, pca.coef), none)
                # the energy of the discarded components: no error has to be computed
                lost += float(pca.eigenvalues[number:].sum())
                total += float(pca.eigenvalues.sum())
            else:
                metric, stacked = metrics[name].of(layers), stack(of_group)
                fit = Fit(*scale_for_training(*fit_atoms(stacked, number, metric)), none)
                lost += float(metric.energy(stacked - fit.shared()).sum())
                total += float(metric.energy(stacked).sum())
            fits[name].append(fit)
    ranks = {name: [0] * len(rows) for name, rows in weights.items()}
    sharing = Sharing(groups, dict.fromkeys(weights, numbers), ranks)
    return Solution(sharing, fits, lost / max(total, 1e-300), 1)


class _Problem:
    """Atoms and residuals of all projections, fitted in turn."""

    def __init__(
        self,
        weights: Weights,
        groups: Groups,
        numbers: list[int],
        ranks: Mapping[str, Sequence[int]] | RankBudget,
        metrics: Mapping[str, Metric],
    ) -> None:
        self.weights = {name: stack(rows) for name, rows in weights.items()}  # (L, out, in) each
        self.groups, self.numbers, self.given = groups, numbers, ranks
        self.metrics = {name: metrics.get(name, Metric()) for name in weights}
        # with an atom for each layer of a group the fit is exact, and a residual would be wasted
        self.exact = {
            layer
            for s, layers in zip(numbers, groups, strict=True)
            if s == len(layers)
            for layer in layers
        }
        self.energy = self._energy(self.weights)
        self.atoms: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        # the two parts of the approximation, (L, out, in): from the atoms, and U V
        self.shared = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self.own = dict(self.shared)
        self.pairs: dict[str, Pairs] = {}  # U and V of each layer
        self.sweeps = 0

    def start(self, sweeps: int) -> _Problem:
        """Run the first sweep; if more will follow, from the better of two starts."""
        other = copy.copy(self)  # shares weights and metrics, which no sweep changes
        other.atoms, other.shared = {}, dict(self.shared)
        self.sweep()
        if sweeps == 1:
            return self
        other._fit_residuals()
        other.sweep()
        return min((self, other), key=lambda problem: problem.cost)

    def refine(self, sweeps: int) -> Solution:
        """Run more sweeps and return the result."""
        for _ in range(sweeps):
            self.sweep()
        fits = {
            name: [
                Fit(
                    *scale_for_training(atoms.clone(), coef),  # it scales in place
                    [self.pairs[name][layer] for layer in layers],
                )
                for (atoms, coef), layers in zip(found, self.groups, strict=True)
            ]
            for name, found in self.atoms.items()
        }
        ranks = {name: [up.shape[1] for up, _ in pairs] for name, pairs in self.pairs.items()}
        sharing = Sharing(self.groups, dict.fromkeys(self.weights, self.numbers), ranks)
        return Solution(sharing, fits, self.cost, self.sweeps)

    def sweep(self) -> None:
        """Fit the atoms to the error of the residuals, then the residuals to that of the atoms."""
        for name, weight in self.weights.items():
            left, metric = weight - self.own[name], self.metrics[name]
            shared, found = torch.empty_like(weight), []
            starts = self.atoms.get(name, [None] * len(self.groups))
            for layers, number, start in zip(self.groups, self.numbers, starts, strict=True):
                found.append(fit_atoms(left[layers], number, metric.of(layers), start))
                shared[layers] = Fit(*found[-1], []).shared()
            self.atoms[name], self.shared[name] = found, shared
        self._fit_residuals()
        self.sweeps += 1

    def _fit_residuals(self) -> None:
        left = {name: weight - self.shared[name] for name, weight in self.weights.items()}
        if isinstance(self.given, RankBudget):
            ranks = allocate(left, self.metrics, self.given, dict.fromkeys(left, self.exact))
        else:
            ranks = {
                name: [0 if layer in self.exact else k for layer, k in enumerate(of_name)]
                for name, of_name in self.given.items()
            }
        self.pairs = {n: low_rank(weight, self.metrics[n], ranks[n]) for n, weight in left.items()}
        self.own = {n: torch.stack([u @ v for u, v in pairs]) for n, pairs in self.pairs.items()}

    @property
    def cost(self) -> float:
        """Energy of the error over that of the weights."""
        left = {n: weight - self.shared[n] - self.own[n] for n, weight in self.weights.items()}
        return self._energy(left) / max(self.energy, 1e-300)

    def _energy(self, weights: Mapping[str, torch.Tensor]) -> float:
        return sum(float(self.metrics[name].energy(w).sum()) for name, w in weights.items())
