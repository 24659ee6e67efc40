"""Compress a dense vision transformer to a MASA model, without training."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from masa_vit.compression.align import MODES, Alignment, Allowed, allowed, apply_alignment
from masa_vit.compression.align import align as align_heads
from masa_vit.compression.build import build, check_model, projection_weights, stacked_weights
from masa_vit.compression.groups import (
    Groups,
    check_groups,
    cluster_groups,
    kl_groups,
    optimal_groups,
    uniform_groups,
)
from masa_vit.compression.logit_lens import logit_lens
from masa_vit.compression.metric import WEIGHTINGS, Statistics, collect_statistics
from masa_vit.compression.pca import gram_matrix
from masa_vit.compression.solve import (
    ALLOCATIONS,
    Solution,
    most_atoms,
    solve,
    solve_budget,
)
from masa_vit.layers.atoms import check_num_atoms
from masa_vit.models import MasaVisionTransformer
from masa_vit.models.sharing_args import (
    PROJECTIONS,
    ResidualRank,
    parse_projections,
    parse_residual_rank,
)

_logger = logging.getLogger(__name__)

GROUPINGS = ('uniform', 'kl', 'optimal', 'spectral', 'hierarchical')
"""Ways to find groups of layers."""


class Compression(NamedTuple):
    """A compressed model, and how it came about."""

    model: MasaVisionTransformer
    dense: nn.Module
    """The model that was compressed, its heads aligned if that was asked for: the same function."""
    solution: Solution
    statistics: Statistics | None
    """Of `dense` on the calibration images."""
    alignment: Alignment | None
    mode: str | None
    """Of the alignment."""


def compress(
    model: nn.Module,
    num_atoms: int | str = 4,
    projections: str | Sequence[str] = PROJECTIONS,
    *,
    groups: str | Sequence[Sequence[int]] | None = None,
    num_groups: int = 3,
    align: str | None = None,
    weighting: str = 'none',
    residual_rank: ResidualRank | str = 0,
    budget: float | None = None,
    calibration: Iterable[torch.Tensor] | torch.Tensor | None = None,
    sweeps: int | None = None,
) -> MasaVisionTransformer:
    """Approximate the attention weights of a dense model by atoms, without training.

    The weights of one projection in all L layers become S atoms and one coefficient per layer and
    atom, by default by Matrix PCA: the best in the least-squares sense. Everything else is copied as
    it is. This is **lossy**: trained attention weights of different layers have little in common,
    and with S a third of L most of their energy is lost. Expect to fine-tune the result.

    The name in `pretrained_cfg` and timm's record of arguments create a model of the same shape
    again, so that `timm.models.save_for_hf` works; it refuses arguments that are classes (the norms
    of CLIP, SwiGLU), which JSON cannot hold. `fold` turns the result back to a dense model.

    The paper (https://arxiv.org/abs/2508.04581) has Matrix PCA, groups of layers by KL divergence, and
    the residual. The other groupings, alignment, the weighting of the atoms' fit, and the search for
    the best split of a budget are ours.

    Args:
        model: A `VisionTransformer` of timm (ViT, DeiT-3, DINOv2, CLIP and SigLIP towers, ...), on
            any device, in any floating dtype. Left as it is.
        num_atoms: Number of atoms S of each dictionary, less than there are layers. A group of fewer
            layers has one atom for each. 'auto': what suits `budget` best.
        projections: The projections that share, letters out of 'qkvo'; the others are dense.
        groups: Layers that share with each other only, a dictionary for each group: lists of
            layers, or a way to find `num_groups` of them: 'uniform' runs of layers; 'kl' (the
            paper's; needs `calibration`): cut where the prediction drifts most; 'optimal': the runs
            that lose least; 'spectral' or 'hierarchical' clustering of the weights. Default: one.
        num_groups: Number of groups to find.
        align: Change the heads of every layer so that layers have more in common, and the function
            stays: 'permutation', 'rotation' (with it) or 'invertible' (both, after balancing). Turned
            off in part where a norm forbids it.
        weighting: What counts as an error: 'none', that of the weights; 'input', that of the outputs
            on `calibration`; 'fisher', as far as the prediction feels it (the best one measured).
        residual_rank: Rank k of a part of every layer's weight that is its own (local refinement);
            by letter or layer too, as for `MasaVisionTransformer`. 'energy' or 'uniform': as much as
            `budget` has left, spent on the largest singular values, or evenly.
        budget: What may be kept: a share of the attention's weights in (0, 1), or, from 1 on, the
            number of parameters of the whole model.
        calibration: Batches of images (B, 3, H, W) as the model takes them, for 'kl', 'input' and
            'fisher'; some hundred images, from the training set.
        sweeps: How often atoms and residual are fitted in turn. Default: 1, the paper's way, where
            ranks are given; 4 where they are found ('energy', 'uniform').

    Returns:
        A new MASA model with trainable ('direct') coefficients, on the same device, in the same
        dtype and mode.

    Raises:
        TypeError: If `model` is not timm's `VisionTransformer` itself.
        ValueError: For a model that shares already, an argument out of its range or at odds with
            another, calibration images that are missing, too few or not finite, blocks without
            `attn.qkv` and `attn.proj` or of unequal shape, weights that are not finite.
        ImportError: If scikit-learn or scipy is missing, for clustering and alignment.
    """
    return compress_with_record(
        model,
        num_atoms,
        projections,
        groups=groups,
        num_groups=num_groups,
        align=align,
        weighting=weighting,
        residual_rank=residual_rank,
        budget=budget,
        calibration=calibration,
        sweeps=sweeps,
    ).model


def compress_with_record(
    model: nn.Module,
    num_atoms: int | str = 4,
    projections: str | Sequence[str] = PROJECTIONS,
    *,
    groups: str | Sequence[Sequence[int]] | None = None,
    num_groups: int = 3,
    align: str | None = None,
    weighting: str = 'none',
    residual_rank: ResidualRank | str = 0,
    budget: float | None = None,
    calibration: Iterable[torch.Tensor] | torch.Tensor | None = None,
    sweeps: int | None = None,
) -> Compression:
    """As `compress`, and tell how: the groups, numbers and ranks found, what is lost."""
    check_model(model)
    names = parse_projections(projections)
    _check_choices(num_atoms, align, weighting, residual_rank, budget, sweeps)
    batches = _batches(calibration, groups, weighting)
    weights = {name: rows for name, rows in projection_weights(model).items() if name in names}
    depth = len(weights[names[0]])
    found = _find_groups(model, weights, groups, num_groups, num_atoms, batches)
    if num_atoms != 'auto':
        check_num_atoms(num_atoms)
        _check_number(int(num_atoms), found)

    alignment = None
    if align is not None:
        number = max(1, depth // 3) if num_atoms == 'auto' else int(num_atoms)
        may = allowed(model)
        for reason in may.reasons:
            _logger.warning('%s', reason)
        alignment = align_weights(stacked_weights(model), may, names, number, found, align)
        model = apply_alignment(model, alignment)
        weights = {name: rows for name, rows in projection_weights(model).items() if name in names}
    statistics = metrics = None
    if batches:
        statistics = collect_statistics(model, batches, gradients=weighting == 'fisher')
    if statistics is not None and weighting != 'none':
        stacked = {name: torch.stack([w.double() for w in rows]) for name, rows in weights.items()}
        metrics = statistics.metrics(stacked, weighting)

    if budget is None:
        ranks = parse_residual_rank(residual_rank, names, depth)  # type: ignore[arg-type]
        own = ranks if any(map(any, ranks.values())) else None
        solution = solve(weights, found, int(num_atoms), own, metrics, sweeps or 1)
    else:
        numbers = _numbers(model, weights, budget)
        solution = _spend(weights, found, numbers, num_atoms, residual_rank, metrics, sweeps)
    return Compression(build(model, solution), model, solution, statistics, alignment, align)


def _check_choices(
    num_atoms: Any, align: Any, weighting: Any, residual_rank: Any, budget: Any, sweeps: Any
) -> None:
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
    if budget is not None and not budget > 0:
        raise ValueError(
            f'budget={budget} is not valid, expected a share of the attention in (0, 1), or a number '
            'of parameters'
        )
    if sweeps is not None and (not isinstance(sweeps, int) or sweeps < 1):
        raise ValueError(f'sweeps={sweeps!r} is not valid, expected an integer >= 1')


def _batches(
    calibration: Iterable[torch.Tensor] | torch.Tensor | None, groups: Any, weighting: str
) -> list[torch.Tensor]:
    batches = [] if calibration is None else calibration
    batches = [*batches.split(64)] if isinstance(batches, torch.Tensor) else [*batches]
    needed_by = [f'weighting={weighting!r}'] if weighting != 'none' else []
    needed_by += ["groups='kl'"] if isinstance(groups, str) and groups == 'kl' else []
    if needed_by and not batches:
        raise ValueError(f'{" and ".join(needed_by)} needs calibration images: calibration=...')
    return batches


def _check_number(num_atoms: int, groups: Groups) -> None:
    largest = max(map(len, groups))
    if num_atoms >= largest:
        of = f'{largest} layers' if len(groups) == 1 else f'groups of at most {largest} layers'
        raise ValueError(
            f'num_atoms={num_atoms} for {of} saves nothing: choose at most {largest - 1} (a third of '
            'the layers is the usual choice)'
        )


def _find_groups(
    model: Any,
    weights: Mapping[str, Sequence[torch.Tensor]],
    groups: str | Sequence[Sequence[int]] | None,
    num_groups: int,
    num_atoms: int | str,
    batches: list[torch.Tensor],
) -> Groups:
    depth = len(next(iter(weights.values())))
    if groups is None:
        return [[*range(depth)]]
    if not isinstance(groups, str):
        return check_groups(groups, depth)
    if groups == 'uniform':
        return uniform_groups(depth, num_groups)
    if groups == 'kl':
        return kl_groups(logit_lens(model, batches), num_groups)
    if groups not in GROUPINGS:
        raise ValueError(f'groups={groups!r} is unknown, expected lists or one of {GROUPINGS}')
    grams = [gram_matrix(rows).cpu() for rows in weights.values()]
    if groups == 'optimal':
        return optimal_groups(grams, num_groups, 1 if num_atoms == 'auto' else int(num_atoms))
    return cluster_groups(grams, num_groups, groups)


def align_weights(
    weights: Mapping[str, torch.Tensor],
    may: Allowed,
    names: str,
    num_atoms: int,
    groups: Groups,
    mode: str,
) -> Alignment:
    """Align for what `solve` will do: S atoms for each group of the projections in `names`."""
    numbers = [min(num_atoms, len(group)) for group in groups]
    return align_heads(
        weights, may.num_heads, numbers, groups, mode, may.rotate_qk, may.rotate_vo, names
    )


def _numbers(model: nn.Module, weights: Mapping[str, Sequence[torch.Tensor]], budget: float) -> int:
    """Parameters that the atoms, coefficients and residuals may have."""
    every = projection_weights(model)
    attention = sum(row.numel() for rows in every.values() for row in rows)
    sharing = sum(row.numel() for rows in weights.values() for row in rows)
    if budget < 1:
        kept = int(budget * attention)
    else:
        kept = int(budget) - (sum(p.numel() for p in model.parameters()) - attention)
    numbers = kept - (attention - sharing)
    if numbers >= sharing:
        raise ValueError(
            f'budget={budget} leaves the projections {"".join(weights)!r} {numbers:,} parameters, and '
            f'they have {sharing:,}: nothing would be saved'
        )
    return numbers


def _spend(
    weights: Mapping[str, Sequence[torch.Tensor]],
    groups: Groups,
    numbers: int,
    num_atoms: int | str,
    residual_rank: Any,
    metrics: Any,
    sweeps: int | None,
) -> Solution:
    number = None if num_atoms == 'auto' else int(num_atoms)
    if isinstance(residual_rank, str):
        return solve_budget(weights, groups, numbers, number, residual_rank, metrics, sweeps or 4)
    depth = sum(map(len, groups))
    ranks = parse_residual_rank(residual_rank, ''.join(weights), depth)
    price = sum(
        rank * sum(weights[name][0].shape) for name, of_name in ranks.items() for rank in of_name
    )
    best = most_atoms(weights, groups, numbers - price)
    own = ranks if price else None
    return solve(weights, groups, best, own, metrics, sweeps or 1)
