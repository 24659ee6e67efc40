"""Split a budget between atoms and residuals."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from masa_vit.compression.allocation import Ranks
from masa_vit.compression.metric import Metric
from masa_vit.compression.solver import Problem, Solution, numbers_of_groups
from masa_vit.compression.source_weights import Weights

_logger = logging.getLogger(__name__)


def solve_budget(
    weights: Weights,
    groups: list[list[int]],
    numbers: int,
    num_atoms: int | Sequence[int] | None,
    allocation: str,
    metrics: Mapping[str, Metric] | None,
    sweeps: int,
) -> Solution:
    """Find atoms and residuals of at most `numbers` parameters with the least cost.

    Every number of atoms is tried for one sweep, until more of them have lost more twice in a row; the
    best one is refined.

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
    candidates: Sequence[int | Sequence[int]]
    candidates = range(1, largest + 1) if num_atoms is None else [num_atoms]
    problems: list[Problem] = []
    costs: list[float] = []
    for number in candidates:
        left = numbers - price_of_atoms(weights, groups, number)
        if left < 0:
            break
        _logger.info('fitting %s, and residuals of what is left', _called(number))
        ranks = Ranks(allocation, left)
        of_group = numbers_of_groups(weights, groups, number)
        problem = Problem(weights, groups, of_group, ranks, metrics or {})
        if sweeps > 1:
            problem = problem.better_start()
        else:
            problem.sweep()
        problems.append(problem)
        costs.append(problem.cost)
        _logger.info('%s: %.2f %% of the energy is lost', _called(number), 100 * costs[-1])
        if len(costs) >= 3 and costs[-3] < costs[-2] < costs[-1]:
            break
    if not problems:
        raise _too_small(weights, groups, numbers, candidates[0])
    best = costs.index(min(costs))
    if sweeps > 1:
        _logger.info(
            'refining the fit of %s, %d more sweeps', _called(candidates[best]), sweeps - 1
        )
    return problems[best].refine(sweeps - 1)


def _called(num_atoms: int | Sequence[int]) -> str:
    """For the user."""
    return f'{num_atoms} atom{"" if num_atoms == 1 else "s"} for each group and projection'


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
    weights: Weights,
    groups: Sequence[Sequence[int]],
    numbers: int,
    number: int | Sequence[int],
) -> ValueError:
    return ValueError(
        f'the budget leaves {numbers:,} parameters for the projections {"".join(weights)!r}, and '
        f'{number} atom(s) for each of {len(groups)} groups of layers cost '
        f'{price_of_atoms(weights, groups, number):,}: raise the budget, or use fewer groups'
    )


def price_of_atoms(
    weights: Weights, groups: Sequence[Sequence[int]], num_atoms: int | Sequence[int]
) -> int:
    """Parameters of S atoms for each group and projection, and of their coefficients."""
    return sum(
        number * (weights[name][0].numel() + len(group))
        for name, numbers in numbers_of_groups(weights, groups, num_atoms).items()
        for number, group in zip(numbers, groups, strict=True)
    )


def price_of_residuals(weights: Weights, ranks: Mapping[str, Sequence[int]]) -> int:
    """Parameters of residuals, of which `ranks` names k of each layer."""
    return sum(
        rank * sum(weights[name][0].shape) for name, of_name in ranks.items() for rank in of_name
    )


def check_price(
    weights: Weights,
    groups: Sequence[Sequence[int]],
    num_atoms: int | Sequence[int],
    ranks: Mapping[str, Sequence[int]],
) -> None:
    """Refuse atoms and residuals that have as many parameters as the weights, or more."""
    total = price_of_residuals(weights, ranks) + price_of_atoms(weights, groups, num_atoms)
    dense = sum(row.numel() for rows in weights.values() for row in rows)
    if total >= dense:
        shown = sorted({rank for of_name in ranks.values() for rank in of_name})
        residuals = f' and residual_rank={", ".join(map(str, shown))}' if any(shown) else ''
        raise ValueError(
            f'num_atoms={num_atoms}{residuals} need {total:,} parameters for the projections '
            f'{", ".join(weights)}, which have {dense:,}: nothing is saved'
        )
