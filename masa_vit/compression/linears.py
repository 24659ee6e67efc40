"""Compress the linear maps of any stack of blocks, in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from masa_vit.compression.budget import check_price
from masa_vit.compression.options import check_numbers
from masa_vit.compression.solve import Solution, solve
from masa_vit.compression.weights import Weights, linear_weights
from masa_vit.layers import (
    Dictionary,
    SharedLinear,
    bank_name,
    check_groups,
    check_ranks,
    projection_shapes,
    share_linears,
)
from masa_vit.layers.linear import Names


@torch.no_grad()
def compress_linears(
    blocks: Sequence[nn.Module],
    layout: Mapping[str, Names],
    num_atoms: int | Sequence[int],
    *,
    groups: Sequence[Sequence[int]] | None = None,
    residual_rank: int = 0,
) -> nn.ModuleDict:
    """Approximate the weights of linear maps of a stack of blocks by atoms, in place; lossy.

    For models that `compress` does not take (DINOv3, language models, ...): Matrix PCA, as there, and
    if asked for a residual of low rank for each layer. `masa_vit.layers.fold_linears` undoes the
    sharing, and leaves the model with dense linear maps again.

    Args:
        blocks: The L blocks, alike in shape; each gets its coefficients as `block.coef`.
        layout: Path of a `torch.nn.Linear` inside a block -> the projections that its output stacks,
            each with a dictionary of its own, e.g. ``{'attn.qkv': 'qkv', 'attn.proj': 'o'}`` or, for
            names of more than a letter, ``{'mlp.gate_proj': ['gate']}``; see
            `masa_vit.layers.share_linears`. All that shall share, in one call.
        num_atoms: Number of atoms S of each dictionary, less than there are layers; a list: of each
            group.
        groups: Lists of layers that share with each other only. Default: one group.
        residual_rank: Rank k of a part of every weight that is its layer's own.

    Returns:
        The banks by dictionary name, to be registered on the model, once: ``model.banks = banks``.
        Atoms, coefficients and residuals are trainable, also where the weights were frozen.

    Raises:
        ValueError: For blocks that are not alike, not as `layout` says, or share already; arguments
            out of range, or with which nothing would be saved; weights that are not finite. `blocks`
            are then as they were.
    """
    shapes = projection_shapes(blocks, layout)
    weights = linear_weights(blocks, layout)
    parts = [[*range(len(blocks))]] if groups is None else check_groups(groups, len(blocks))
    numbers = check_numbers(num_atoms, parts)
    ranks = {name: [residual_rank] * len(blocks) for name in weights}
    check_ranks(ranks, list(weights), shapes, len(blocks))
    check_price(weights, parts, numbers, ranks)
    solution = solve(weights, parts, numbers, ranks if residual_rank else None)
    return share_solution(blocks, layout, solution, weights)


@torch.no_grad()
def share_solution(
    blocks: Sequence[nn.Module],
    layout: Mapping[str, Names],
    solution: Solution,
    weights: Weights,
) -> nn.ModuleDict:
    """Replace linear maps of blocks by shared ones with what was fitted, in place.

    Args:
        blocks: As they were fitted; the weights of the linear maps may be on the meta device.
        layout: Path of a linear map -> its projections.
        solution: What was fitted to some of the projections.
        weights: Of all projections, on the device and in the dtype that is wanted.

    Returns:
        The banks by dictionary name.
    """
    groups, num_atoms, ranks = solution.sharing
    dictionaries = {
        bank_name(name, layers) if len(groups) > 1 else name: Dictionary((name,), layers, number)
        for name, numbers in num_atoms.items()
        for layers, number in zip(groups, numbers, strict=True)
    }
    training = [[block.get_submodule(path).training for path in layout] for block in blocks]
    with torch.random.fork_rng(devices=[]):  # draws initial coefficients, which nobody will see
        banks, _ = share_linears(blocks, layout, dictionaries, residual_ranks=ranks)
    banks.train(blocks[0].training)
    path_of = {name: path for path, names in layout.items() for name in names}
    for key, ((name,), layers, _) in dictionaries.items():
        fit = solution.fits[name][groups.index(list(layers))]
        like = weights[name][0]
        banks[key].atoms = nn.Parameter(fit.atoms.to(like).contiguous())
        for index, layer in enumerate(layers):
            setattr(blocks[layer].coef, name, _parameter(fit.coef[index], like))
            linear = blocks[layer].get_submodule(path_of[name])
            for part, value in zip(('up', 'down'), fit.residual[index], strict=True):
                if value.numel():
                    setattr(linear, f'{part}_{name}', _parameter(value, like))
    for index, block in enumerate(blocks):
        block.coef.train(block.training)  # type: ignore[union-attr]
        for path, was_training in zip(layout, training[index], strict=True):
            shared = block.get_submodule(path)
            if isinstance(shared, SharedLinear):
                shared.train(was_training)
                for name in set(shared.names) - set(solution.fits):
                    row = weights[name][index]
                    setattr(shared, f'dense_{name}', _parameter(row, row))
    return banks


def _parameter(value: torch.Tensor, like: torch.Tensor) -> nn.Parameter:
    """A copy, in memory of its own: files refuse views."""
    return nn.Parameter(torch.empty(value.shape, dtype=like.dtype, device=like.device).copy_(value))
