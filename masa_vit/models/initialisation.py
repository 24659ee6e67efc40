"""Initialize the tensors of shared layers as timm initializes dense ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from masa_vit.layers import Dictionary, SharedLinear

OUTPUTS = ('attn.proj', 'mlp.fc2')
"""Layers of a block that write to the residual stream."""


@torch.no_grad()
def scale_own(shared: SharedLinear, scale: float) -> None:
    """Scale the weights of a layer that are not composed from atoms."""
    for name in shared.names:
        if name not in shared.bank_of:
            part = 'up' if name in shared.ranks else 'dense'
            shared.get_parameter(f'{part}_{name}').mul_(scale)


def fix_init_scale(index: int) -> float:
    """Return timm's divisor of the weights that write to the residual stream in layer `index`."""
    return math.sqrt(2.0 * (index + 1))


def atoms_of(
    index: int, shared: SharedLinear, dictionaries: Mapping[str, Dictionary]
) -> dict[str, torch.Tensor]:
    """Return the atoms that start as dense weights of layer `index`, by projection.

    The S atoms of a bank start as the first S weights that it serves, in the order of the
    projections, and of the layers within each.
    """
    atoms = {}
    for name, bank in shared.banks.items():
        names, layers, num_atoms = dictionaries[shared.bank_of[name]]
        # an atom for each pair of projection and layer, in this order, until S are filled
        number = names.index(name) * len(layers) + layers.index(index)
        if number < num_atoms:
            atoms[name] = bank.atoms[number]
    return atoms


@torch.no_grad()
def init_shared_linear(
    shared: SharedLinear,
    path: str,
    atoms: Mapping[str, torch.Tensor],
    init_dense: Callable[..., None],
) -> None:
    """Initialize bias and own weights of a layer, and the atoms that its weight gives."""
    # a dense layer of the same shape draws the values, by timm's own rules for its path
    like = next(iter([*shared.parameters(), *(bank.atoms for bank in shared.banks.values())]))
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
    parts = shared.parts_of(dense.weight)
    for name, atom in atoms.items():  # (rows, in)
        atom.copy_(parts[name])
    shared.reset_own(dense.weight)
