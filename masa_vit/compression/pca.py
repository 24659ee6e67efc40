"""Matrix PCA: the atoms and coefficients with the least squared error over all layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

_CHUNK = 1 << 15
"""Columns of the stacked weights that are in float64 at a time: 3 MB for 12 layers, and few enough
that a copy of one row runs in one thread, without waiting for others."""

_ROUNDING = 1e-13
"""Eigenvalues below this share of the largest are rounding: singular values below 3e-7 of it."""


class MatrixPCA(NamedTuple):
    """Atoms and coefficients of one dictionary, ``W_l ~ sum_s c_ls D_s``."""

    atoms: torch.Tensor
    """D (S, out, in), orthonormal as vectors, in the dtype of the weights."""
    coef: torch.Tensor
    """C (L, S), float64: ``c_ls = <D_s, W_l>``."""
    eigenvalues: torch.Tensor
    """(L,), float64, descending: the energy in every direction. Those from S on are lost."""


@torch.no_grad()
def matrix_pca(weights: Sequence[torch.Tensor], num_atoms: int) -> MatrixPCA:
    """Find the atoms and coefficients with the least squared error over all layers.

    With ``W = [vec W_1 .. vec W_L]`` and the Gram matrix ``W^T W = V Lam V^T`` (L x L, in float64),
    ``D = W V_S Lam_S^(-1/2)`` and ``C = V_S Lam_S^(1/2)``. The squared error is the sum of the
    eigenvalues from S on. The weights are not centred.

    Where the weights span fewer than S directions, the atoms left over are drawn, orthonormal to the
    others, with coefficients 0: so they change nothing, and can be trained.

    Args:
        weights: L matrices (out, in), on one device.
        num_atoms: S, 1 <= S <= L.

    Raises:
        ValueError: If weights hold NaN or infinity.
    """
    first = weights[0]
    gram = gram_matrix(weights)
    values, vectors = torch.linalg.eigh(gram.cpu())  # ascending
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    rank = int((values[:num_atoms] > values[0] * _ROUNDING).sum())
    scale = values[:rank].sqrt()
    coef = torch.zeros(len(weights), num_atoms, dtype=torch.float64, device='cpu')
    coef[:, :rank] = vectors[:, :rank] * scale

    atoms = torch.empty(num_atoms, *first.shape, dtype=first.dtype, device=first.device)
    flat = atoms.view(num_atoms, -1)
    mix = (vectors[:, :rank] / scale).T.to(first.device)  # (rank, L)
    for where, columns in _columns(weights):
        flat[:rank, where] = (mix @ columns).to(first.dtype)
    _complete(flat, rank)
    return MatrixPCA(atoms, coef, values)


@torch.no_grad()
def gram_matrix(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Inner products ``<W_l, W_m>`` of the layers' weights: (L, L), float64.

    Raises:
        ValueError: If weights hold NaN or infinity.
    """
    first = weights[0]
    gram = torch.zeros(len(weights), len(weights), dtype=torch.float64, device=first.device)
    for _, columns in _columns(weights):
        gram.addmm_(columns, columns.T)
    if bad := [
        index for index, energy in enumerate(gram.diagonal().tolist()) if not energy < 1e300
    ]:
        raise ValueError(f'the weights of layers {bad} are not finite: nothing to approximate')
    return gram


def _columns(weights: Sequence[torch.Tensor]) -> Iterator[tuple[slice, torch.Tensor]]:
    """Go through the stacked weights (L, out * in) by columns, in one float64 buffer."""
    rows = [weight.reshape(-1) for weight in weights]
    size = rows[0].numel()
    buffer = rows[0].new_empty(len(rows), min(size, _CHUNK), dtype=torch.float64)
    for start in range(0, size, _CHUNK):
        stop = min(size, start + _CHUNK)
        columns = buffer[:, : stop - start]
        for column, row in zip(columns, rows, strict=True):
            column.copy_(row[start:stop])
        yield slice(start, stop), columns


def _complete(atoms: torch.Tensor, rank: int) -> None:
    """Draw the rows from `rank` on, orthonormal to those before; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    for index in range(rank, len(atoms)):
        drawn = torch.randn(atoms.shape[1], generator=generator, device='cpu').to(atoms.device)
        known = atoms[:index].to(drawn.dtype)
        for _ in range(2):  # once leaves rounding behind
            drawn -= (known @ drawn) @ known
        atoms[index] = drawn / drawn.norm()
