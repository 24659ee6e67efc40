"""The options of `masa_vit.compress`: what they may be, and what goes together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from masa_vit.compression.alignment import MODES
from masa_vit.compression.allocation import ALLOCATIONS
from masa_vit.compression.groups import Groups
from masa_vit.compression.metric import WEIGHTINGS
from masa_vit.layers.bank import check_num_atoms
from masa_vit.models.sharing_args import PROJECTIONS, ResidualRank, parse_projections

GROUPINGS = ('uniform', 'kl', 'optimal', 'spectral', 'hierarchical')
"""Ways to find groups of layers."""


@dataclass(frozen=True)
class CompressionOptions:
    """What `masa_vit.compress` is asked for; see there.

    Raises:
        ValueError: For values that are unknown or out of range, and for those that are at odds.
    """

    num_atoms: int | Sequence[int] | str = 4
    projections: str | Sequence[str] = PROJECTIONS
    groups: str | Sequence[Sequence[int]] | None = None
    num_groups: int | None = None
    align: str | None = None
    weighting: str = 'none'
    residual_rank: ResidualRank | str = 0
    budget: float | None = None
    sweeps: int | None = None

    def __post_init__(self) -> None:
        parse_projections(self.projections)
        if isinstance(self.groups, str) and self.groups not in GROUPINGS:
            raise ValueError(
                f'groups={self.groups!r} is unknown, expected lists or one of {GROUPINGS}'
            )
        _check_count('num_groups', self.num_groups)
        if self.num_groups is not None and not isinstance(self.groups, str):
            raise ValueError(
                f'num_groups={self.num_groups!r} is for groups that are to be found: groups= one of '
                f'{GROUPINGS}'
            )
        if self.align is not None and self.align not in MODES:
            raise ValueError(f'align={self.align!r} is unknown, expected None or one of {MODES}')
        if self.weighting not in WEIGHTINGS:
            raise ValueError(
                f'weighting={self.weighting!r} is unknown, expected one of {WEIGHTINGS}'
            )
        if isinstance(self.residual_rank, str) and self.residual_rank not in ALLOCATIONS:
            raise ValueError(
                f'residual_rank={self.residual_rank!r} is unknown, expected ranks or one of '
                f'{ALLOCATIONS}'
            )
        if isinstance(self.num_atoms, str) and self.num_atoms != 'auto':
            raise ValueError(
                f"num_atoms={self.num_atoms!r} is unknown, expected a number or 'auto'"
            )
        self._check_budget()
        _check_count('sweeps', self.sweeps)
        if self.sweeps is not None and not self.residual_rank:
            raise ValueError(
                f'sweeps={self.sweeps} is for atoms and residuals in turn, and there is no residual: '
                'set residual_rank'
            )

    def _check_budget(self) -> None:
        is_open = self.num_atoms == 'auto' or isinstance(self.residual_rank, str)
        if self.budget is None and is_open:
            raise ValueError(
                f'num_atoms={self.num_atoms!r} with residual_rank={self.residual_rank!r} needs a '
                'budget, by which they are chosen'
            )
        if self.budget is not None and not is_open:
            raise ValueError(
                f"budget={self.budget!r} has nothing to choose: give num_atoms='auto', "
                "residual_rank='energy' (or 'uniform'), or both"
            )
        is_number = isinstance(self.budget, Real) and not isinstance(self.budget, bool)
        if self.budget is not None and not (is_number and 0 < self.budget < float('inf')):
            raise ValueError(
                f'budget={self.budget!r} is not valid, expected a share of the attention in (0, 1), '
                'or a number of parameters'
            )


def _check_count(name: str, value: int | None) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and (not is_integer or value < 1):
        raise ValueError(f'{name}={value!r} is not valid, expected an integer >= 1')


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
