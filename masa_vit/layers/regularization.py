"""Penalties on coefficients and atoms, to add to a training loss (ours; the paper has none)."""

from __future__ import annotations

import torch
from torch import nn

from masa_vit.layers.bank import AtomBank
from masa_vit.layers.coefficients import CoefficientSource


def coefficient_l1(module: nn.Module) -> torch.Tensor:
    """Return the mean absolute coefficient of all layers and projections, to make C sparse.

    Raises:
        ValueError: If nothing in `module` has coefficients.
    """
    sources = [m for m in module.modules() if isinstance(m, CoefficientSource)]
    rows = [row.flatten() for source in sources for row in source().values()]
    if not rows:
        raise ValueError(f'this {type(module).__name__} has no coefficients to penalize')
    return torch.cat(rows).abs().mean()


def atom_correlation(module: nn.Module) -> torch.Tensor:
    """Return the mean squared cosine between two atoms of a dictionary, 0 where all are orthogonal.

    Raises:
        ValueError: If no dictionary in `module` has two atoms.
    """
    banks = [m for m in module.modules() if isinstance(m, AtomBank) and m.num_atoms > 1]
    if not banks:
        raise ValueError(f'this {type(module).__name__} has no dictionary with two atoms')
    means = []
    for bank in banks:
        flat = nn.functional.normalize(bank.atoms.flatten(1), dim=1)  # (S, out * in)
        squares = (flat @ flat.T).square()  # (S, S)
        pairs = bank.num_atoms * (bank.num_atoms - 1)
        means.append((squares.sum() - squares.diagonal().sum()) / pairs)
    return torch.stack(means).mean()
