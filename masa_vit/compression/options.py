"""The options of `masa_vit.compress`: arguments of the function and of the command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real

from masa_vit.compression.budget import ALLOCATIONS
from masa_vit.compression.groups import GROUPINGS, Groups
from masa_vit.compression.metric import WEIGHTINGS
from masa_vit.layers.bank import check_num_atoms
from masa_vit.models.sharing_args import PROJECTIONS, ResidualRank, parse_projections

ALIGNMENTS = ('rotation',)


@dataclass(frozen=True)
class CompressionOptions:
    """Options of `masa_vit.compress` and, by their metadata, arguments of the command.

    - `num_atoms`: Number of atoms S of each dictionary, less than the number of layers. A group of
      fewer layers has one atom for each. A list gives one number for each group. 'auto': the best
      split of `budget`.
    - `projections`: The projections that share, letters out of 'qkvo'; the others are dense.
    - `groups`: Layers that share with each other only, a dictionary for each group: lists of layers, or
      a way to find `num_groups` of them: 'uniform' runs of layers; 'kl' (the paper's; needs
      calibration images): cut at the largest drifts of the prediction; 'optimal': the runs with the
      least loss; 'spectral' or 'hierarchical' clustering of the weights. Default: one group.
    - `num_groups`: Number of groups to find (default: 3).
    - `align`: 'rotation': reorder and rotate the heads of every layer for a better fit; the function
      stays. Off in part where a norm forbids it.
    - `weighting`: Cost of an error: 'none': of the weights; 'input': of the outputs on the calibration
      images; 'fisher': weighted by the sensitivity of the prediction (the best).
    - `residual_rank`: Rank k of a low-rank residual of every layer's weight (local refinement); by
      letter or layer too, as for `MasaVisionTransformer`. 'energy' or 'uniform': the rest of
      `budget`, spent on the largest singular values, or evenly.
    - `budget`: A share of the attention's weights in (0, 1), or, from 1 on, the number of parameters of
      the whole model.
    - `sweeps`: Alternations between atoms and residual. Default: 1, the paper's way, for given ranks; 4
      for ranks that are found ('energy', 'uniform').

    Raises:
        ValueError: For values that are unknown, out of range, or exclude each other.
    """

    num_atoms: int | Sequence[int] | str = field(
        default=4, metadata={'metavar': 'S|auto', 'help': 'atoms of each dictionary'}
    )
    projections: str | Sequence[str] = field(
        default=PROJECTIONS, metadata={'help': 'those that share (default: qkvo)'}
    )
    groups: str | Sequence[Sequence[int]] | None = field(
        default=None,
        metadata={
            'metavar': 'HOW|LISTS',
            'help': f'a dictionary for each group of layers: {", ".join(GROUPINGS)}, or [[0,1],[2,3]]',
        },
    )
    num_groups: int | None = field(
        default=None, metadata={'metavar': 'N', 'help': 'groups to find (default: 3)'}
    )
    align: str | None = field(
        default=None,
        metadata={
            'choices': ALIGNMENTS,
            'help': 'reorder and rotate heads for a better fit; the function stays',
        },
    )
    weighting: str = field(
        default='none', metadata={'choices': WEIGHTINGS, 'help': 'cost of an error'}
    )
    residual_rank: ResidualRank | str = field(
        default=0,
        metadata={
            'metavar': 'K|HOW',
            'help': 'rank of a low-rank residual of every weight, or, with --budget, '
            + ' or '.join(ALLOCATIONS),
        },
    )
    budget: float | None = field(
        default=None,
        metadata={
            'metavar': 'SHARE|COUNT',
            'help': "share of the attention's weights, or parameters of the whole model",
        },
    )
    sweeps: int | None = field(
        default=None, metadata={'metavar': 'N', 'help': 'alternations of atoms and residual'}
    )

    def __post_init__(self) -> None:
        parse_projections(self.projections)
        for name, known in (
            ('groups', GROUPINGS),
            ('align', ALIGNMENTS),
            ('weighting', WEIGHTINGS),
            ('residual_rank', ALLOCATIONS),
            ('num_atoms', ('auto',)),
        ):
            value = getattr(self, name)
            if isinstance(value, str) and value not in known:
                raise ValueError(f'{name}={value!r} is unknown, expected one of {known}')
        if not isinstance(self.num_atoms, str):
            is_list = isinstance(self.num_atoms, Sequence)
            for number in self.num_atoms if is_list else [self.num_atoms]:  # type: ignore[union-attr]
                check_num_atoms(number)
        for name in ('num_groups', 'sweeps'):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f'{name}={value!r} is not valid, expected an integer >= 1')
        if self.num_groups is not None and not isinstance(self.groups, str):
            raise ValueError(f'num_groups={self.num_groups} needs groups= one of {GROUPINGS}')
        if self.sweeps is not None and not self.residual_rank:
            raise ValueError(f'sweeps={self.sweeps} needs a residual_rank')
        self._check_budget()

    def _check_budget(self) -> None:
        is_open = self.num_atoms == 'auto' or isinstance(self.residual_rank, str)
        if self.budget is None and is_open:
            raise ValueError(
                f'num_atoms={self.num_atoms!r} with residual_rank={self.residual_rank!r} needs a budget'
            )
        if self.budget is not None and not is_open:
            raise ValueError(
                f"budget={self.budget!r} needs num_atoms='auto', residual_rank='energy' (or 'uniform'), "
                'or both'
            )
        is_number = isinstance(self.budget, Real) and not isinstance(self.budget, bool)
        if self.budget is not None and not (is_number and 0 < self.budget < float('inf')):
            raise ValueError(
                f'budget={self.budget!r} is not valid, expected a share of the attention in (0, 1), or '
                'a number of parameters'
            )


def check_numbers(num_atoms: int | Sequence[int], groups: Groups) -> int | list[int]:
    """Check S, of all groups or each; return it as ints.

    Raises:
        ValueError: For a number below 1, other than one for each group, or that saves nothing.
    """
    of_each = list(num_atoms) if isinstance(num_atoms, Sequence) else [num_atoms] * len(groups)
    if len(of_each) != len(groups):
        raise ValueError(
            f'num_atoms={num_atoms} has {len(of_each)} numbers, and there are {len(groups)} groups: '
            'expected one for each'
        )
    numbers = [check_num_atoms(number) for number in of_each]
    if all(number >= len(group) for number, group in zip(numbers, groups, strict=True)):
        largest = max(map(len, groups))
        fix = f'choose at most {largest - 1}' if largest > 1 else 'use fewer groups'
        raise ValueError(
            f'num_atoms={num_atoms} for {len(groups)} group(s) of at most {largest} layers saves '
            f'nothing: {fix}'
        )
    return numbers if isinstance(num_atoms, Sequence) else numbers[0]
