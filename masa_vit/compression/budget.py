"""Count the parameters of atoms and residuals, and spend a budget of them on ranks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch

from masa_vit.compression.fit import spectra
from masa_vit.compression.groups import Groups
from masa_vit.compression.metric import Metric
from masa_vit.compression.source_weights import Weights

ALLOCATIONS = ('energy', 'uniform')
"""Ways to spend a budget on the ranks of residuals."""

_ROUNDING = 1e-12
"""Energies below this share of the largest are rounding: no rank is spent on them."""


class RankBudget(NamedTuple):
    """Ranks to be found within a number of parameters."""

    allocation: str
    parameters: int


def numbers_of_groups(groups: Groups, num_atoms: int | Sequence[int]) -> list[int]:
    """Return S of each group, at most its number of layers."""
    of_group = [num_atoms] * len(groups) if isinstance(num_atoms, int) else num_atoms
    return [min(number, len(group)) for number, group in zip(of_group, groups, strict=True)]


def atom_parameters(weights: Weights, groups: Groups, num_atoms: int | Sequence[int]) -> int:
    """Count the parameters of S atoms for each group and projection, and of their coefficients."""
    return sum(
        number * (rows[0].numel() + len(group))
        for rows in weights.values()
        for number, group in zip(numbers_of_groups(groups, num_atoms), groups, strict=True)
    )


def residual_parameters(weights: Weights, ranks: Mapping[str, Sequence[int]]) -> int:
    """Count the parameters of residuals with rank k for each projection and layer."""
    return sum(sum(of_name) * sum(weights[name][0].shape) for name, of_name in ranks.items())


def most_atoms(weights: Weights, groups: Groups, parameters: int) -> int:
    """Return the largest S of all groups and projections within a number of parameters.

    Raises:
        ValueError: If one atom exceeds it.
    """
    candidates = range(1, max(map(len, groups)) + 1)
    fitting = [s for s in candidates if atom_parameters(weights, groups, s) <= parameters]
    if not fitting:
        raise too_small(weights, groups, parameters, 1)
    return fitting[-1]


def too_small(
    weights: Weights, groups: Groups, parameters: int, num_atoms: int | Sequence[int]
) -> ValueError:
    """Return the error for a budget below the parameters of some atoms."""
    return ValueError(
        f'the budget leaves {parameters:,} parameters for the projections {"".join(weights)!r}, and '
        f'{num_atoms} atom(s) for each of {len(groups)} groups of layers need '
        f'{atom_parameters(weights, groups, num_atoms):,}: raise the budget, or use fewer groups'
    )


def check_saves(
    weights: Weights,
    groups: Groups,
    num_atoms: int | Sequence[int],
    ranks: Mapping[str, Sequence[int]],
) -> None:
    """Raise ValueError if atoms and residuals have as many parameters as the weights, or more."""
    total = residual_parameters(weights, ranks) + atom_parameters(weights, groups, num_atoms)
    dense = sum(row.numel() for rows in weights.values() for row in rows)
    if total >= dense:
        shown = sorted({rank for of_name in ranks.values() for rank in of_name})
        residuals = f' and residual_rank={", ".join(map(str, shown))}' if any(shown) else ''
        raise ValueError(
            f'num_atoms={num_atoms}{residuals} need {total:,} parameters for the projections '
            f'{", ".join(weights)}, which have {dense:,}: nothing is saved'
        )


def allocate(
    weights: Mapping[str, torch.Tensor],
    metrics: Mapping[str, Metric],
    ranks: RankBudget,
    exact: Mapping[str, Collection[int]] | None = None,
) -> dict[str, list[int]]:
    """Allocate ranks within one budget.

    A rank has (out + in) parameters. 'energy': the largest singular values per parameter first;
    'uniform': every weight gets the same. No weight gets more than its dense form has.

    Args:
        weights: To be approximated by the residuals, (L, out, in).
        metrics: Cost of an error.
        ranks: The allocation and the number of parameters.
        exact: Projection -> layers that need no residual.
    """
    exact = exact or {}
    depth = len(next(iter(weights.values())))
    sizes = {name: sum(weight.shape[1:]) for name, weight in weights.items()}  # of one rank
    # beyond this rank two factors have more parameters than the dense weight
    most = {name: weight[0].numel() // sizes[name] for name, weight in weights.items()}
    takers = [
        (n, layer) for n in weights for layer in range(depth) if layer not in exact.get(n, ())
    ]
    found = {name: [0] * depth for name in weights}
    if ranks.allocation == 'uniform':
        rank = ranks.parameters // max(sum(sizes[name] for name, _ in takers), 1)
        for name, layer in takers:
            found[name][layer] = min(rank, most[name])
        return found
    energies = {
        name: spectra(weight, metrics.get(name)).square() / sizes[name]  # (L, min(out, in))
        for name, weight in weights.items()
    }
    gains = sorted(
        (-gain, name, layer)
        for name, layer in takers
        for gain in energies[name][layer, : most[name]].tolist()
    )
    left = ranks.parameters
    # singular values fall, so that the ranks of a weight come in their order
    for gain, name, layer in gains:
        if sizes[name] > left or gain > _ROUNDING * gains[0][0]:
            break
        found[name][layer] += 1
        left -= sizes[name]
    return found
