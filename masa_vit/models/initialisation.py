"""Initialise atoms, and what a layer has of its own, as the dense weights that they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import nn

from masa_vit.layers import AtomBank, Dictionary, SharedLinear


def fix_init_scale(index: int) -> float:
    """What timm divides the weights that write to the residual stream by, in layer `index`."""
    return math.sqrt(2.0 * (index + 1))


def atoms_of(
    index: int, shared: SharedLinear, banks: nn.ModuleDict, dictionaries: Mapping[str, Dictionary]
) -> dict[str, torch.Tensor]:
    """The atoms that start as dense weights of layer `index`, by the projection of that weight.

    A bank has as many atoms as the first of the weights that it serves: those of one projection in
    all layers, then those of the next.
    """
    atoms = {}
    for key, (names, layers, num_atoms) in dictionaries.items():
        for name in set(names) & set(shared.names) if index in layers else ():
            number = names.index(name) * len(layers) + layers.index(index)
            if number < num_atoms:
                atoms[name] = cast(AtomBank, banks[key]).atoms[number]
    return atoms


@torch.no_grad()
def init_shared_linear(
    shared: SharedLinear,
    path: str,
    atoms: Mapping[str, torch.Tensor],
    init_dense: Callable[..., None],
) -> None:
    """Initialise bias, dense rows and residual of a layer, and the atoms that its weight gives."""
    like = shared.first_bank.atoms
    dense = nn.Linear(
        shared.in_features,
        shared.out_features,
        bias=shared.bias is not None,
        device=like.device,
        dtype=like.dtype,
    )
    init_dense(dense, path)
    if shared.bias is not None:
        shared.bias.copy_(dense.bias)
    for name, rows in zip(shared.names, dense.weight.split(shared.sizes), strict=True):
        if name not in shared.banks:
            shared.dense_rows(name).copy_(rows)
        elif name in atoms:
            atoms[name].copy_(rows)
    shared.reset_residual()
