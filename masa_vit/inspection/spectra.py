"""Singular values of atoms and weights, and of Gaussian matrices as their control.

Of composed weights they are invariant to mixing; of atoms, divided by the norm, to scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from masa_vit.inspection.sharing_measures import entropy_number


def singular_values(matrices: torch.Tensor) -> torch.Tensor:
    """Singular values of (n, out, in), in falling order: (n, min(out, in)), float64."""
    # The smaller Gram matrix in float64 is twice as fast as an SVD in float32, and as exact.
    wide = matrices.shape[-1] > matrices.shape[-2]
    values = []
    for matrix in matrices:
        each = matrix.double()
        gram = each @ each.T if wide else each.T @ each
        values.append(torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt())
    return torch.stack(values)


def effective_rank(values: torch.Tensor) -> torch.Tensor:
    """Effective rank of singular values (..., n): exp of the entropy of ``sigma / sum(sigma)``.

    Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality".
    """
    return entropy_number(values)


def stable_rank(values: torch.Tensor) -> torch.Tensor:
    """Stable rank of singular values (..., n) in falling order: ``||W||_F^2 / ||W||_2^2``."""
    largest = values[..., 0].square()
    return torch.where(largest > 0, values.square().sum(-1) / largest, 0.0)


def gaussian_values(shape: Sequence[int], seed: int = 0) -> torch.Tensor:
    """Singular values of a Gaussian matrix (out, in) with Frobenius norm 1: the control.

    A spectrum that falls no faster than this one shows no structure.
    """
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    return singular_values(matrix / matrix.norm())[0]


def head_norms(weights: torch.Tensor, num_heads: int, output: bool = False) -> torch.Tensor:
    """Frobenius norm of each head's part of weights (L, out, in): (L, H).

    Args:
        weights: Of a projection in all layers.
        num_heads: H.
        output: The heads are the columns (the output projection), not the rows.

    Raises:
        ValueError: If the heads do not divide the weight.
    """
    size = weights.shape[2 if output else 1]
    if num_heads < 1 or size % num_heads:
        raise ValueError(f'num_heads={num_heads} does not divide the {size} features of the heads')
    dim = size // num_heads
    # (L, H, hd, in), or (L, out, H, hd) of the output projection
    parts = weights.unflatten(2 if output else 1, (num_heads, dim)).double()
    return parts.square().sum(dim=(1, 3) if output else (2, 3)).sqrt()
