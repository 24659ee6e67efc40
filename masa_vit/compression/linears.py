"""Compress the linear layers of any stack of blocks, in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from masa_vit.compression.budget import check_saves
from masa_vit.compression.options import check_numbers
from masa_vit.compression.solver import Solution, solve
from masa_vit.compression.source_weights import Weights, check_finite, linear_weights
from masa_vit.layers import (
    Dictionary,
    SharedBlocks,
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
) -> SharedBlocks:
    """Approximate the weights of linear layers of a stack of blocks by atoms, in place; lossy.

    For models that `compress` does not take (DINOv3, language models, ...): Matrix PCA, as there, and
    optionally a low-rank residual for each layer: ``model.blocks = compress_linears(model.blocks,
    ...)``. `masa_vit.fold` returns the model with dense linear layers again.

    Args:
        blocks: The L blocks, of equal shapes.
        layout: Path of a `torch.nn.Linear` inside a block -> the projections that its output stacks,
            with a dictionary each, e.g. ``{'attn.qkv': 'qkv', 'attn.proj': 'o'}`` or, for
            names of more than a letter, ``{'mlp.gate_proj': ['gate']}``; see
            `masa_vit.layers.share_linears`.
        num_atoms: Number of atoms S of each dictionary, less than there are layers; a list: of each
            group.
        groups: Lists of layers that share with each other only. Default: one group.
        residual_rank: Rank k of the low-rank residual of every weight.

    Returns:
        The blocks with their atoms, to replace `blocks`. Atoms, coefficients and residuals are
        trainable, also where the weights were frozen.

    Raises:
        ValueError: For blocks of unequal shapes, without the layers of `layout`, or that share already;
            arguments out of range, or that save nothing; weights that are not finite. `blocks` are
            not changed then.
    """
    shapes = projection_shapes(blocks, layout)
    weights = linear_weights(blocks, layout)
    check_finite(weights)
    parts = [[*range(len(blocks))]] if groups is None else check_groups(groups, len(blocks))
    numbers = check_numbers(num_atoms, parts)
    ranks = {name: [residual_rank] * len(blocks) for name in weights}
    check_ranks(ranks, list(weights), shapes, len(blocks))
    check_saves(weights, parts, numbers, ranks)
    solution = solve(weights, parts, numbers, ranks if residual_rank else None)
    return share_solution(blocks, layout, solution, weights)


@torch.no_grad()
def share_solution(
    blocks: Sequence[nn.Module],
    layout: Mapping[str, Names],
    solution: Solution,
    weights: Weights,
) -> SharedBlocks:
    """Replace linear layers of blocks by shared ones with the fitted tensors, in place.

    Args:
        blocks: As they were fitted; the weights of the linear layers may be on the meta device.
        layout: Path of a linear layer -> its projections.
        solution: The fit of some of the projections.
        weights: Of all projections, on the device and in the dtype of the result.

    Returns:
        The blocks with their atoms.
    """
    groups, num_atoms, ranks = solution.sharing
    dictionaries = {
        bank_name(name, layers) if len(groups) > 1 else name: Dictionary((name,), layers, number)
        for name, numbers in num_atoms.items()
        for layers, number in zip(groups, numbers, strict=True)
    }
    shared: Any = blocks
    for parent in dict.fromkeys(path.rpartition('.')[0] for path in layout):
        of_parent = {p: names for p, names in layout.items() if p.rpartition('.')[0] == parent}
        fitted = {name for names in of_parent.values() for name in names if name in num_atoms}
        if fitted:
            with torch.random.fork_rng(devices=[]):  # the initial coefficients are replaced below
                shared = share_linears(
                    shared,
                    of_parent,
                    {key: value for key, value in dictionaries.items() if value.names[0] in fitted},
                    residual_ranks={name: ranks[name] for name in fitted},
                )
    path_of = {name: path for path, names in layout.items() for name in names}
    for (name,), layers, _ in dictionaries.values():
        fit = solution.fits[name][groups.index(list(layers))]
        like = weights[name][0]
        for index, layer in enumerate(layers):
            linear: Any = blocks[layer].get_submodule(path_of[name])
            if index == 0:
                linear.banks[name].atoms = nn.Parameter(fit.atoms.to(like).contiguous())
            setattr(linear.coef, name, _parameter(fit.coef[index], like))
            for part, value in zip(('up', 'down'), fit.residual[index], strict=True):
                if value.numel():
                    setattr(linear, f'{part}_{name}', _parameter(value, like))
    for index, block in enumerate(blocks):
        for path in layout:
            linear = block.get_submodule(path)
            if isinstance(linear, SharedLinear):
                for name in set(linear.names) - set(solution.fits):
                    row = weights[name][index]
                    setattr(linear, f'dense_{name}', _parameter(row, row))
    return shared


def _parameter(value: torch.Tensor, like: torch.Tensor) -> nn.Parameter:
    """Return a contiguous copy: files refuse views."""
    return nn.Parameter(torch.empty(value.shape, dtype=like.dtype, device=like.device).copy_(value))
