"""Compress a dense vision transformer to a MASA model, without training."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from masa_vit.compression.alignment import Alignment, Allowed, allowed, apply_alignment
from masa_vit.compression.alignment import align as align_heads
from masa_vit.compression.budget import (
    check_price,
    most_atoms,
    price_of_residuals,
    solve_budget,
)
from masa_vit.compression.building import build, check_model
from masa_vit.compression.groups import (
    Groups,
    cluster_groups,
    kl_groups,
    optimal_groups,
    uniform_groups,
)
from masa_vit.compression.lens import logit_lens
from masa_vit.compression.metric import Metric, Statistics, check_images, collect_statistics
from masa_vit.compression.options import CompressionOptions, check_numbers
from masa_vit.compression.pca import gram_matrix
from masa_vit.compression.solver import Solution, solve
from masa_vit.compression.source_weights import Weights, dense_weights, stacked_weights
from masa_vit.layers import check_groups, check_ranks
from masa_vit.models import MasaVisionTransformer
from masa_vit.models.sharing_args import (
    PROJECTIONS,
    ResidualRank,
    parse_projections,
    parse_residual_rank,
)

_logger = logging.getLogger(__name__)

_MOST_IMAGES = 4096
"""For calibration."""


class Compression(NamedTuple):
    """A compressed model, and how it came about."""

    model: MasaVisionTransformer
    dense: nn.Module
    """The model that was compressed, its heads aligned if that was asked for: the same function."""
    solution: Solution
    options: CompressionOptions
    statistics: Statistics | None
    """Of `dense` on the calibration images, if errors were weighed."""
    metrics: dict[str, Metric] | None
    """By which they were."""
    alignment: Alignment | None


def compress(
    model: nn.Module,
    num_atoms: int | Sequence[int] | str = 4,
    projections: str | Sequence[str] = PROJECTIONS,
    *,
    groups: str | Sequence[Sequence[int]] | None = None,
    num_groups: int | None = None,
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
    again, so that `timm.models.save_for_hf` works; it refuses arguments that are classes (SwiGLU,
    blocks of one's own), which JSON cannot hold. `fold` turns the result back to a dense model.

    The paper (https://arxiv.org/abs/2508.04581) has Matrix PCA, groups of layers by KL divergence, and
    the residual. The other groupings, alignment, the weighting of the atoms' fit, and the search for
    the best split of a budget are ours.

    Args:
        model: A `VisionTransformer` of timm (ViT, DeiT, DINOv2, CLIP and SigLIP towers, ...; not those
            that timm builds on other classes, as DINOv3 on `Eva`: see `compress_linears`), on any
            device that has float64, in any floating dtype. Left as it is.
        num_atoms: Number of atoms S of each dictionary, less than there are layers. A group of fewer
            layers has one atom for each. A list gives one number for each group. 'auto': what suits
            `budget` best.
        projections: The projections that share, letters out of 'qkvo'; the others are dense.
        groups: Layers that share with each other only, a dictionary for each group: lists of
            layers, or a way to find `num_groups` of them: 'uniform' runs of layers; 'kl' (the
            paper's; needs `calibration`): cut where the prediction drifts most; 'optimal': the runs
            that lose least; 'spectral' or 'hierarchical' clustering of the weights. Default: one.
        num_groups: Number of groups to find (default: 3).
        align: Change the heads of every layer so that layers have more in common, and the function
            stays: 'permutation', 'rotation' (with it) or 'invertible' (both, after balancing). Turned
            off in part where a norm forbids it.
        weighting: What counts as an error: 'none', that of the weights; 'input', that of the outputs
            on `calibration`; 'fisher', weighted by the sensitivity of the prediction (the best).
        residual_rank: Rank k of a part of every layer's weight that is its own (local refinement);
            by letter or layer too, as for `MasaVisionTransformer`. 'energy' or 'uniform': as much as
            `budget` has left, spent on the largest singular values, or evenly.
        budget: What may be kept: a share of the attention's weights in (0, 1), or, from 1 on, the
            number of parameters of the whole model.
        calibration: Batches of images (B, 3, H, W) as the model takes them, or of images and classes,
            for 'kl', 'input' and 'fisher'; some hundred images, from the training set. No more than
            the first 4,096 are used, all at once in memory.
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
    options = CompressionOptions(
        num_atoms, projections, groups, num_groups, align, weighting, residual_rank, budget, sweeps
    )
    return compress_with_record(model, options, calibration).model


def compress_with_record(
    model: nn.Module,
    options: CompressionOptions | None = None,
    calibration: Iterable[torch.Tensor] | torch.Tensor | None = None,
) -> Compression:
    """As `compress`, whose other arguments are the options, and tell how and with what loss."""
    options = options or CompressionOptions()
    check_model(model)
    names = parse_projections(options.projections)
    if next(model.parameters()).device.type == 'mps':
        raise ValueError('the device of the model, mps, has no float64: compress model.cpu()')
    batches = _batches(calibration, model, options)
    weights = {name: rows for name, rows in dense_weights(model).items() if name in names}
    depth = len(weights[names[0]])
    groups = _find_groups(model, weights, options, batches)
    num_atoms = options.num_atoms
    if not isinstance(num_atoms, str):
        num_atoms = check_numbers(num_atoms, groups)

    alignment = None
    if options.align is not None:
        may = allowed(model)
        for reason in may.reasons:
            _logger.warning('%s', reason)
        _logger.info('aligning the heads of %d layers', depth)
        numbers = max(1, depth // 3) if isinstance(num_atoms, str) else num_atoms
        alignment = align_weights(
            stacked_weights(model), may, names, numbers, groups, options.align
        )
        model = apply_alignment(model, alignment)
        weights = {name: rows for name, rows in dense_weights(model).items() if name in names}
    statistics = metrics = None
    if options.weighting != 'none':
        _logger.info('running %d calibration images', sum(map(len, batches)))
        fisher = options.weighting == 'fisher'
        statistics = collect_statistics(model, batches, gradients=fisher)
        metrics = statistics.metrics(weights, options.weighting)

    _logger.info('fitting the weights of %s in %d layers', ', '.join(names.upper()), depth)
    solution = _solve(model, weights, groups, num_atoms, options, metrics)
    masa = build(model, solution)
    return Compression(masa, model, solution, options, statistics, metrics, alignment)


def _batches(
    calibration: Iterable[Any] | torch.Tensor | None, model: Any, options: CompressionOptions
) -> list[torch.Tensor]:
    """The calibration images, checked, if something needs them."""
    needed_by = [f'weighting={options.weighting!r}'] if options.weighting != 'none' else []
    needed_by += ["groups='kl'"] if str(options.groups) == 'kl' else []
    if not needed_by:
        return []
    given = [] if calibration is None else calibration
    batches: list[torch.Tensor] = []
    for batch in given.split(64) if isinstance(given, torch.Tensor) else given:
        if sum(map(len, batches)) >= _MOST_IMAGES:
            _logger.warning('more than %d calibration images: the first are used', _MOST_IMAGES)
            break
        batches.append(check_images(batch, model))
    if not batches:
        raise ValueError(f'{" and ".join(needed_by)} needs calibration images: calibration=...')
    return batches


def _find_groups(
    model: Any,
    weights: Weights,
    options: CompressionOptions,
    batches: list[torch.Tensor],
) -> Groups:
    depth = len(next(iter(weights.values())))
    how = options.groups
    num_groups = 3 if options.num_groups is None else options.num_groups
    if how is None:
        return [[*range(depth)]]
    if not isinstance(how, str):
        return check_groups(how, depth)
    _logger.info('finding %d groups of layers', num_groups)
    if how == 'uniform':
        return uniform_groups(depth, num_groups)
    if how == 'kl':
        return kl_groups(logit_lens(model, batches), num_groups)
    grams = [gram_matrix(rows).cpu() for rows in weights.values()]
    if how == 'optimal':
        number = options.num_atoms if isinstance(options.num_atoms, int) else 1
        return optimal_groups(grams, num_groups, number)
    return cluster_groups(grams, num_groups, how)


def align_weights(
    weights: Mapping[str, torch.Tensor],
    may: Allowed,
    names: str,
    num_atoms: int | Sequence[int],
    groups: Groups,
    mode: str,
) -> Alignment:
    """Align for what `solve` will do: S atoms for each group of the projections in `names`."""
    of_group = [num_atoms] * len(groups) if isinstance(num_atoms, int) else num_atoms
    numbers = [min(number, len(group)) for number, group in zip(of_group, groups, strict=True)]
    return align_heads(
        weights, may.num_heads, numbers, groups, mode, may.rotate_qk, may.rotate_vo, names
    )


def _solve(
    model: nn.Module,
    weights: Weights,
    groups: Groups,
    num_atoms: int | list[int] | str,
    options: CompressionOptions,
    metrics: Mapping[str, Metric] | None,
) -> Solution:
    """Fit what was asked for, or what a budget pays for."""
    residual_rank, budget, sweeps = options.residual_rank, options.budget, options.sweeps
    depth = sum(map(len, groups))
    dense = sum(row.numel() for rows in weights.values() for row in rows)
    numbers = None if budget is None else _numbers(model, dense, budget)
    if numbers is not None and isinstance(residual_rank, str):
        number = None if isinstance(num_atoms, str) else num_atoms
        return solve_budget(weights, groups, numbers, number, residual_rank, metrics, sweeps or 4)
    ranks = parse_residual_rank(cast(ResidualRank, residual_rank), ''.join(weights), depth)
    shapes = {name: (rows[0].shape[0], rows[0].shape[1]) for name, rows in weights.items()}
    check_ranks(ranks, list(weights), shapes, depth)
    price = price_of_residuals(weights, ranks)
    if numbers is not None:
        number = most_atoms(weights, groups, numbers - price)
    else:
        number = cast(int, num_atoms)
        check_price(weights, groups, number, ranks)
    return solve(weights, groups, number, ranks if price else None, metrics, sweeps or 1)


def _numbers(model: nn.Module, sharing: int, budget: float) -> int:
    """Parameters that the atoms, coefficients and residuals of the shared projections may have."""
    attention = sum(row.numel() for rows in dense_weights(model).values() for row in rows)
    rest = sum(param.numel() for param in model.parameters()) - attention
    kept = int(budget * attention) if budget < 1 else int(budget) - rest
    numbers = kept - (attention - sharing)
    if not 0 < numbers < sharing:
        what = (
            f'a share of the {attention:,} weights of the attention'
            if budget < 1
            else f"from 1 on, the parameters of the whole model: {rest:,} are not the attention's"
        )
        raise ValueError(
            f'budget={budget} ({what}) leaves {numbers:,} parameters for the projections that share, '
            f'which have {sharing:,}'
            + (
                f' (those that do not share keep {attention - sharing:,})'
                if attention > sharing
                else ''
            )
            + (': nothing would be saved' if numbers > 0 else '')
        )
    return numbers
