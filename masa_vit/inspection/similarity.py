"""Similarity of layers, atoms and models.

Functions of composed weights are invariant to any change of atoms and coefficients that leaves the
model the same function; functions of coefficients are not (`sharing_measures`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from masa_vit.inspection.sharing_measures import ROUNDING, contributions


def cosine_similarity(rows: torch.Tensor, others: torch.Tensor | None = None) -> torch.Tensor:
    """Cosines between tensors along the first dimension: (L, ...) -> (L, L), or (L, M) with `others`.

    Of composed weights invariant to mixing of the atoms; of rows of C not even to scale. A
    tensor without norm has cosines of 0.
    """
    first = _unit_rows(rows)
    second = first if others is None else _unit_rows(others)
    return (first @ second.T).clamp(-1, 1)


def composed_similarity(coef: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Cosines (L, L) of the weights composed of the atoms, from C (L, S) and their Gram matrix (S, S).

    ``<W_l, W_m>`` is entry (l, m) of ``C G C^T``: as `cosine_similarity` of the composed weights, but
    without composing them. Residuals are left out. Invariant to mixing. Zeros for
    a layer without weight.
    """
    products = coef.double() @ gram.double() @ coef.double().T  # (L, L): <W_l, W_m>
    energies = products.diagonal()
    # atoms that cancel leave rounding errors, whose direction means nothing
    rounding = ROUNDING * contributions(coef, gram).sum(dim=1).square()
    norms = torch.where(energies > rounding, energies, 0.0).sqrt()
    scale = norms.outer(norms)
    return torch.where(scale > 0, products / scale, 0.0).clamp(-1, 1)


def mean_off_diagonal(similarity: torch.Tensor) -> float:
    """Mean of a similarity (L, L) over pairs of different layers; 0 for a single layer."""
    pairs = similarity.numel() - len(similarity)
    return float((similarity.sum() - similarity.trace()) / max(pairs, 1))


def _unit_rows(rows: torch.Tensor) -> torch.Tensor:
    flat = rows.flatten(1).double()
    norms = flat.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, flat / norms, 0.0)


def cluster_layers(similarity: torch.Tensor) -> torch.Tensor:
    """Cluster layers by their similarity (L, L), hierarchically, by the average distance.

    Returns:
        The linkage (L - 1, 4) of `scipy.cluster.hierarchy`: the two clusters that are joined, their
        distance (1 - similarity), and the number of layers then. Layers are 0 to L - 1, joined ones
        go on from L.

    Raises:
        ImportError: If scipy is missing (extra `inspect`).
    """
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    if len(similarity) < 2:
        return torch.zeros(0, 4, dtype=torch.float64)
    # scipy checks for exact symmetry and a zero diagonal
    distances = (1 - (similarity + similarity.T) / 2).clamp(min=0)
    distances.fill_diagonal_(0)
    return torch.from_numpy(linkage(squareform(distances.numpy(), checks=False), 'average'))


def principal_angles(atoms: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Angles between the subspaces that two sets of atoms span, degrees, in rising order.

    0: a direction in both; 90: one orthogonal to the other subspace. Invariant to mixing, of
    either (Björck & Golub 1973). Random subspaces of few atoms in many dimensions have angles near 90.

    Args:
        atoms: (S, ...).
        others: (T, ...), of the same shape after the first dimension.

    Returns:
        min(rank, rank) angles.

    Raises:
        ValueError: If the shapes differ.
    """
    if atoms.shape[1:] != others.shape[1:]:
        raise ValueError(
            f'atoms of shape {tuple(atoms.shape[1:])} and {tuple(others.shape[1:])} span subspaces of '
            'different spaces: only models of the same width can be compared so'
        )
    # the singular values of the product of two orthonormal bases are the cosines
    cosines = torch.linalg.svdvals(_orthonormal(atoms) @ _orthonormal(others).T)
    return cosines.clamp(0, 1).arccos().rad2deg()


def _orthonormal(atoms: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis (rank, n) of the span."""
    _, singular, right = torch.linalg.svd(atoms.flatten(1).double(), full_matrices=False)
    return right[singular > singular[0] * 1e-7]


class Matching(NamedTuple):
    """Atoms of one model, and the most similar ones of another."""

    pairs: list[tuple[int, int]]
    """(atom, other atom), min(S, T) of them, by the first."""
    cosines: torch.Tensor
    """Of the pairs, signed."""


def match_atoms(atoms: torch.Tensor, others: torch.Tensor) -> Matching:
    """Pair the atoms (S, ...) of one model with those (T, ...) of another, each used once.

    The pairs of the largest total absolute cosine (the Hungarian method, by scipy). Invariant to scale,
    but for signs.

    Raises:
        ValueError: If the shapes differ.
        ImportError: If scipy is missing (extra `inspect`).
    """
    from scipy.optimize import linear_sum_assignment

    if atoms.shape[1:] != others.shape[1:]:
        raise ValueError(
            f'atoms of shape {tuple(atoms.shape[1:])} and {tuple(others.shape[1:])} cannot be matched'
        )
    cosines = cosine_similarity(atoms, others)
    first, second = linear_sum_assignment(cosines.abs().numpy(), maximize=True)
    return Matching([*zip(first.tolist(), second.tolist(), strict=True)], cosines[first, second])
