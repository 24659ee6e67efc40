"""Fit all projections of a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from masa_vit.compression.allocation import Ranks, allocate
from masa_vit.compression.fit import (
    Fit,
    Pairs,
    fit_atoms,
    low_rank,
    no_residual,
    scale_for_training,
)
from masa_vit.compression.metric import Metric
from masa_vit.compression.pca import matrix_pca
from masa_vit.compression.source_weights import Weights, stack

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


def solve(
    weights: Weights,
    groups: list[list[int]],
    num_atoms: int | Sequence[int],
    ranks: Mapping[str, Sequence[int]] | Ranks | None = None,
    metrics: Mapping[str, Metric] | None = None,
    sweeps: int = 1,
) -> Solution:
    """Fit every projection: atoms for each group, and residuals.

    One sweep is the paper's way: atoms, then the residual of what they leave. With more, the two are
    fitted in turn, from the better of two starts: the atoms first, or the residuals first (ours;
    weights that are nearly of low rank are better served by the second). Layers of a group that has
    an atom for each get no residual.

    Args:
        weights: Of the projections that share.
        groups: Of layers.
        num_atoms: S, of all groups or each; at most its number of layers is used.
        ranks: Of the residuals, given or to be found; None: no residuals.
        metrics: Cost of an error; None: all directions alike.
        sweeps: How often the two are fitted.
    """
    numbers = numbers_of_groups(weights, groups, num_atoms)
    if ranks is None:
        return _atoms_alone(weights, groups, numbers, metrics)
    problem = Problem(weights, groups, numbers, ranks, metrics or {})
    if sweeps == 1:
        problem.sweep()
        return problem.solution()
    return problem.better_start().refine(sweeps - 1)


def numbers_of_groups(
    weights: Weights, groups: Sequence[Sequence[int]], num_atoms: int | Sequence[int]
) -> dict[str, list[int]]:
    """Projection -> S of each group, at most its number of layers."""
    of_group = [num_atoms] * len(groups) if isinstance(num_atoms, int) else num_atoms
    numbers = [min(n, len(group)) for n, group in zip(of_group, groups, strict=True)]
    return dict.fromkeys(weights, numbers)


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
                stacked = stack(of_group)
                fit = Fit(*scale_for_training(*fit_atoms(stacked, number, metric)), none)
                fits[name].append(fit)
                lost += float(metric.energy(stacked - fit.shared()).sum())
                total += float(metric.energy(stacked).sum())
    sharing = Sharing(groups, numbers, {name: [0] * len(rows) for name, rows in weights.items()})
    return Solution(sharing, fits, lost / max(total, 1e-300), 1)


class Problem:
    """Atoms and residuals of all projections, fitted in turn."""

    def __init__(
        self,
        weights: Weights,
        groups: list[list[int]],
        numbers: dict[str, list[int]],
        ranks: Mapping[str, Sequence[int]] | Ranks,
        metrics: Mapping[str, Metric],
    ) -> None:
        self.weights = {name: stack(rows) for name, rows in weights.items()}
        self.groups, self.numbers = groups, numbers
        self.metrics = {name: metrics.get(name, Metric()) for name in weights}
        self._given = ranks
        # layers that their own atoms give exactly
        self._exact = {
            name: {
                layer
                for number, layers in zip(numbers[name], groups, strict=True)
                for layer in (layers if number == len(layers) else ())
            }
            for name in weights
        }
        self._energy = self._cost(self.weights)
        self._atoms: dict[str, list[Shared]] = {}
        self._shared = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self._own = dict(self._shared)
        self._pairs: dict[str, Pairs] = {}
        self._ranks: dict[str, list[int]] = {}
        self._sweeps = 0

    def better_start(self) -> Problem:
        """Run one sweep from the atoms, and one from the residuals: the one that loses less."""
        other = copy.copy(self)
        other._atoms, other._shared = {}, dict(self._shared)
        self.sweep()
        other._fit_residuals()
        other.sweep()
        return min((self, other), key=lambda problem: problem.cost)

    def refine(self, sweeps: int) -> Solution:
        """Go on for so many sweeps."""
        for _ in range(sweeps):
            self.sweep()
        return self.solution()

    def sweep(self) -> None:
        """Fit the atoms to what the residuals leave, then the residuals to what the atoms leave."""
        for name, weight in self.weights.items():
            left, metric = weight - self._own[name], self.metrics[name]
            shared, found = torch.empty_like(weight), []
            starts = self._atoms.get(name, [None] * len(self.groups))
            for layers, number, start in zip(self.groups, self.numbers[name], starts, strict=True):
                pair = fit_atoms(left[layers], number, metric.of(layers), start)
                found.append(pair)
                shared[layers] = Fit(*pair, []).shared()
            self._atoms[name], self._shared[name] = found, shared
        self._fit_residuals()
        self._sweeps += 1

    def _fit_residuals(self) -> None:
        left = {name: weight - self._shared[name] for name, weight in self.weights.items()}
        if isinstance(self._given, Ranks):
            ranks = allocate(left, self.metrics, self._given, self._exact)
        else:
            ranks = {
                name: [0 if layer in self._exact[name] else k for layer, k in enumerate(of_name)]
                for name, of_name in self._given.items()
            }
        self._ranks = ranks
        self._pairs = {
            name: low_rank(weight, self.metrics[name], ranks[name]) for name, weight in left.items()
        }
        self._own = {
            name: torch.stack([up @ down for up, down in pairs])
            for name, pairs in self._pairs.items()
        }

    @property
    def cost(self) -> float:
        """What is lost, over what there was."""
        left = {
            name: weight - self._shared[name] - self._own[name]
            for name, weight in self.weights.items()
        }
        return self._cost(left) / max(self._energy, 1e-300)

    def _cost(self, weights: Mapping[str, torch.Tensor]) -> float:
        return sum(float(self.metrics[name].energy(w).sum()) for name, w in weights.items())

    def solution(self) -> Solution:
        """What has been found."""
        fits = {
            name: [
                Fit(
                    *scale_for_training(atoms.clone(), coef),
                    [self._pairs[name][layer] for layer in layers],
                )
                for (atoms, coef), layers in zip(pairs, self.groups, strict=True)
            ]
            for name, pairs in self._atoms.items()
        }
        sharing = Sharing(self.groups, self.numbers, self._ranks)
        return Solution(sharing, fits, self.cost, self._sweeps)
