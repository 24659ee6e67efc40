"""The choices of `masa_vit.compress`: what they may be, and what goes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from masa_vit.compression.align import MODES
from masa_vit.compression.allocation import ALLOCATIONS
from masa_vit.compression.groups import Groups
from masa_vit.compression.metric import WEIGHTINGS
from masa_vit.layers.atoms import check_num_atoms

GROUPINGS = ('uniform', 'kl', 'optimal', 'spectral', 'hierarchical')
"""Ways to find groups of layers."""


def check_choices(
    num_atoms: Any,
    groups: Any,
    num_groups: Any,
    align: Any,
    weighting: Any,
    residual_rank: Any,
    budget: Any,
    sweeps: Any,
) -> None:
    """Refuse values that are unknown or out of range, and those that are at odds.

    Raises:
        ValueError: With the value, what was expected, and the way out.
    """
    if num_groups is not None and not isinstance(groups, str):
        raise ValueError(
            f'num_groups={num_groups!r} is for groups that are to be found: groups= one of {GROUPINGS}'
        )
    if align is not None and align not in MODES:
        raise ValueError(f'align={align!r} is unknown, expected None or one of {MODES}')
    if weighting not in WEIGHTINGS:
        raise ValueError(f'weighting={weighting!r} is unknown, expected one of {WEIGHTINGS}')
    if isinstance(residual_rank, str) and residual_rank not in ALLOCATIONS:
        raise ValueError(
            f'residual_rank={residual_rank!r} is unknown, expected ranks or one of {ALLOCATIONS}'
        )
    if isinstance(num_atoms, str) and num_atoms != 'auto':
        raise ValueError(f"num_atoms={num_atoms!r} is unknown, expected a number or 'auto'")
    is_open = num_atoms == 'auto' or isinstance(residual_rank, str)
    if budget is None and is_open:
        raise ValueError(
            f'num_atoms={num_atoms!r} with residual_rank={residual_rank!r} needs a budget, by which '
            'they are chosen'
        )
    if budget is not None and not is_open:
        raise ValueError(
            f"budget={budget} has nothing to choose: give num_atoms='auto', residual_rank='energy' "
            "(or 'uniform'), or both"
        )
    if budget is not None and not 0 < budget < float('inf'):
        raise ValueError(
            f'budget={budget} is not valid, expected a share of the attention in (0, 1), or a number '
            'of parameters'
        )
    if sweeps is not None and (not isinstance(sweeps, int) or sweeps < 1):
        raise ValueError(f'sweeps={sweeps!r} is not valid, expected an integer >= 1')
    if sweeps is not None and not residual_rank:
        raise ValueError(
            f'sweeps={sweeps} is for atoms and residuals in turn, and there is no residual: set '
            'residual_rank'
        )


def check_numbers(num_atoms: int | Sequence[int], groups: Groups) -> int | list[int]:
    """Check S, of all groups or each."""
    if isinstance(num_atoms, Sequence):
        if len(num_atoms) != len(groups):
            raise ValueError(
                f'num_atoms={list(num_atoms)} has {len(num_atoms)} numbers, and there are {len(groups)} '
                'groups: expected one for each'
            )
        numbers = [check_num_atoms(number) for number in num_atoms]
    else:
        numbers = [check_num_atoms(num_atoms)] * len(groups)
    if all(number >= len(group) for number, group in zip(numbers, groups, strict=True)):
        largest = max(map(len, groups))
        of = f'{largest} layers' if len(groups) == 1 else f'groups of at most {largest} layers'
        way_out = (
            f'choose at most {largest - 1} (a third of the layers is the usual choice)'
            if largest > 1
            else 'take fewer groups'
        )
        raise ValueError(f'num_atoms={num_atoms} for {of} saves nothing: {way_out}')
    return numbers if isinstance(num_atoms, Sequence) else numbers[0]
