"""Compress a dense vision transformer to a MASA model, without training."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from masa_vit.compression.alignment import Alignment, align, allowed, apply_alignment
from masa_vit.compression.budget import (
    RankBudget,
    check_saves,
    most_atoms,
    numbers_of_groups,
    residual_parameters,
)
from masa_vit.compression.building import build, check_model
from masa_vit.compression.groups import Groups, find_groups
from masa_vit.compression.metric import Metric, Statistics, check_images, collect_statistics
from masa_vit.compression.options import CompressionOptions, check_numbers
from masa_vit.compression.solver import Solution, solve, solve_budget
from masa_vit.compression.source_weights import (
    Weights,
    check_finite,
    dense_weights,
    stacked_weights,
)
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
    """A compressed model, and the record of its compression."""

    model: MasaVisionTransformer
    dense: nn.Module
    """The compressed model's source, with aligned heads if `align` is set: the same function."""
    solution: Solution
    options: CompressionOptions
    statistics: Statistics | None
    """Of `dense` on the calibration images, for a weighting."""
    metrics: dict[str, Metric] | None
    """Cost of an error by projection, for a weighting."""
    alignment: Alignment | None


def compress(
    model: nn.Module,
    num_atoms: int | Sequence[int] | str = 4,
    projections: str | Sequence[str] = PROJECTIONS,
    *,
    calibration: Iterable[torch.Tensor] | torch.Tensor | None = None,
    **options: Any,
) -> MasaVisionTransformer:
    """Approximate the attention weights of a dense model by atoms, without training.

    The weights of one projection in all L layers become S atoms and one coefficient per layer and
    atom, by default by Matrix PCA: the best in the least-squares sense. Everything else is copied.
    This is **lossy**: trained attention weights of different layers have little in common, and with S
    a third of L most of their energy is lost. Expect to fine-tune the result.

    The name in `pretrained_cfg` and timm's record of arguments create a model of the same shape
    again, so that `timm.models.save_for_hf` works; it refuses arguments that are classes (SwiGLU,
    custom blocks), which JSON cannot hold. `fold` turns the result back to a dense model.

    The paper (https://arxiv.org/abs/2508.04581) has Matrix PCA, groups of layers by KL divergence, and
    the residual. The other groupings, alignment, the weighting of the atoms' fit, and the search for
    the best split of a budget are ours.

    Args:
        model: A `VisionTransformer` of timm (ViT, DeiT, DINOv2, CLIP and SigLIP towers, ...; for other
            classes, such as `Eva` of DINOv3, see `compress_linears`), on any device that has float64,
            in any floating dtype. It is not changed.
        num_atoms: S, see `CompressionOptions`.
        projections: The projections that share, see there.
        calibration: Batches of images (B, 3, H, W) as the model takes them, or of images and classes,
            for groups='kl' and the weightings 'input' and 'fisher'; some hundred images, from the
            training set. At most the first 4,096 are used, all at once in memory.
        **options: The other fields of `CompressionOptions`.

    Returns:
        A new MASA model with trainable ('direct') coefficients, on the same device, in the same
        dtype and mode.

    Raises:
        TypeError: If `model` is not timm's `VisionTransformer` itself.
        ValueError: For a model that shares already, an option out of its range or that excludes
            another, calibration images that are missing, too few or not finite, blocks without
            `attn.qkv` and `attn.proj` or of unequal shape, weights that are not finite.
        ImportError: If scikit-learn or scipy is missing, for clustering and alignment.
    """
    all_options = CompressionOptions(num_atoms, projections, **options)
    return compress_with_record(model, all_options, calibration).model


def compress_with_record(
    model: nn.Module,
    options: CompressionOptions | None = None,
    calibration: Iterable[torch.Tensor] | torch.Tensor | None = None,
) -> Compression:
    """Compress as `compress` does, and return the fit with the model."""
    options = options or CompressionOptions()
    check_model(model)
    names = parse_projections(options.projections)
    if next(model.parameters()).device.type == 'mps':
        raise ValueError('the device of the model, mps, has no float64: compress model.cpu()')
    batches = _batches(calibration, model, options)
    weights = {name: rows for name, rows in dense_weights(model).items() if name in names}
    check_finite(weights)
    depth = len(weights[names[0]])
    groups = _groups(model, weights, options, batches)
    num_atoms = options.num_atoms
    if not isinstance(num_atoms, str):
        num_atoms = check_numbers(num_atoms, groups)

    # alignment changes the weights, so it comes before their statistics
    alignment = None
    if options.align is not None:
        can = allowed(model)
        for reason in can.reasons:
            _logger.warning('%s', reason)
        _logger.info('aligning the heads of %d layers', depth)
        # S is not known yet for 'auto': a third of the layers, as in the paper
        numbers = max(1, depth // 3) if isinstance(num_atoms, str) else num_atoms
        of_group = numbers_of_groups(groups, numbers)
        alignment = align(stacked_weights(model), can, of_group, groups, names)
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
    """Return the calibration images, checked, if an option needs them."""
    needed_by = [f'weighting={options.weighting!r}'] if options.weighting != 'none' else []
    needed_by += ["groups='kl'"] if options.groups == 'kl' else []
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


def _groups(
    model: nn.Module,
    weights: Weights,
    options: CompressionOptions,
    batches: list[torch.Tensor],
) -> Groups:
    depth = len(next(iter(weights.values())))
    if options.groups is None:
        return [[*range(depth)]]
    if not isinstance(options.groups, str):
        return check_groups(options.groups, depth)
    num_groups = options.num_groups or 3
    _logger.info('finding %d groups of layers', num_groups)
    num_atoms = options.num_atoms if isinstance(options.num_atoms, int) else 1
    return find_groups(options.groups, num_groups, model, weights, num_atoms, batches)


def _solve(
    model: nn.Module,
    weights: Weights,
    groups: Groups,
    num_atoms: int | list[int] | str,
    options: CompressionOptions,
    metrics: Mapping[str, Metric] | None,
) -> Solution:
    """Fit the given sizes, or those that a budget allows."""
    residual_rank, sweeps = options.residual_rank, options.sweeps
    parameters = None if options.budget is None else _budget_left(model, weights, options.budget)
    if parameters is not None and isinstance(residual_rank, str):
        number = None if isinstance(num_atoms, str) else num_atoms
        ranks = RankBudget(residual_rank, parameters)
        return solve_budget(weights, groups, ranks, number, metrics, sweeps or 4)
    depth = sum(map(len, groups))
    given = parse_residual_rank(cast(ResidualRank, residual_rank), ''.join(weights), depth)
    shapes = {name: (rows[0].shape[0], rows[0].shape[1]) for name, rows in weights.items()}
    check_ranks(given, list(weights), shapes, depth)
    own = residual_parameters(weights, given)
    if parameters is not None:  # residuals of a given rank; the rest of the budget is for atoms
        num_atoms = most_atoms(weights, groups, parameters - own)
    sizes = cast('int | list[int]', num_atoms)
    check_saves(weights, groups, sizes, given)
    return solve(weights, groups, sizes, given if own else None, metrics, sweeps or 1)


def _budget_left(model: nn.Module, weights: Weights, budget: float) -> int:
    """Return the parameters that the budget leaves for the projections that share."""
    sharing = sum(row.numel() for rows in weights.values() for row in rows)
    attention = sum(row.numel() for rows in dense_weights(model).values() for row in rows)
    rest = sum(param.numel() for param in model.parameters()) - attention
    kept = int(budget * attention) if budget < 1 else int(budget) - rest
    parameters = kept - (attention - sharing)
    if not 0 < parameters < sharing:
        meaning = (
            f'a share of the {attention:,} weights of the attention'
            if budget < 1
            else f'from 1 on, the parameters of the whole model, {rest:,} of them outside the attention'
        )
        raise ValueError(
            f'budget={budget} ({meaning}) leaves {parameters:,} parameters for the projections that '
            f'share, which have {sharing:,} (those that do not share keep {attention - sharing:,})'
        )
    return parameters
