"""Use of the atoms by the layers: shares, effective numbers, dead and doubled atoms.

``W_l = sum_s c_ls D_s`` is not unique: an atom may be scaled by any factor (or change its sign) if
its coefficients are divided by it, and atoms may be mixed by any invertible S x S matrix if C is
mixed by its inverse. The model stays the same function. Each function here names its invariance:
**scale** (factors and signs of single atoms), **mixing** (any invertible change of the basis, scale
included), or neither. Results that are invariant to scale only differ between runs.

All are computed from C (L, S) and the Gram matrix of the atoms (S, S), whatever the size of the
atoms. Residuals are left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

DEAD = 1e-3
"""Share of a dictionary's use below which an atom counts as dead (our choice)."""

ROUNDING = 1e-12
"""Share of the squared contributions below which a squared norm is rounding."""

DOUBLED = 0.99
"""Overlap of two atoms from which they count as the same one (our choice)."""


def gram_of_atoms(atoms: torch.Tensor) -> torch.Tensor:
    """Inner products of atoms (S, out, in): (S, S), float64. Not invariant."""
    rows = atoms.flatten(1).double()
    return rows @ rows.T


def atom_norms(gram: torch.Tensor) -> torch.Tensor:
    """Frobenius norms of the atoms (S,). Not invariant."""
    return gram.diagonal().clamp(min=0).sqrt()


def contributions(coef: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Frobenius norm ``||c_ls D_s||`` of what an atom adds to a layer (L, S). Invariant to scale."""
    return coef.double().abs() * atom_norms(gram)


def atom_shares(coef: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Signed share of each atom in each layer's weight (L, S): ``<c_ls D_s, W_l> / ||W_l||^2``.

    The rows sum to 1. A share is negative where the other atoms outweigh this one, and above 1 where
    they cancel it. Our definition. Invariant to scale. Zeros for a layer without weight, also where the
    atoms cancel to within rounding.
    """
    sizes = contributions(coef, gram)
    coef = coef.double()
    parts = coef * (coef @ gram)  # (L, S): <c_ls D_s, W_l>
    total = parts.sum(dim=1, keepdim=True)
    there = total > ROUNDING * sizes.sum(dim=1, keepdim=True).square()
    return torch.where(there, parts / total, 0.0)


def participation_ratio(sizes: torch.Tensor) -> torch.Tensor:
    """Effective number of non-negative sizes along the last dimension: ``(sum p)^2 / sum p^2``.

    1 if all but one are zero, n if all n are equal, 0 if all are zero.
    """
    total, squares = sizes.sum(-1), sizes.square().sum(-1)
    return torch.where(squares > 0, total.square() / squares, 0.0)


def entropy_number(sizes: torch.Tensor) -> torch.Tensor:
    """Effective number of non-negative sizes along the last dimension: ``exp(entropy(p))``.

    Between 1 and n as the participation ratio, and never below it.
    """
    total = sizes.sum(-1, keepdim=True)
    shares = torch.where(total > 0, sizes / total, 0.0)
    number = (-torch.special.xlogy(shares, shares).sum(-1)).exp()
    return torch.where(total.squeeze(-1) > 0, number, 0.0)


def atom_use(coef: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Share of each atom (S,) in ``sum_ls ||c_ls D_s||^2``: sums to 1. Invariant to scale."""
    energies = contributions(coef, gram).square().sum(dim=0)
    total = energies.sum()
    return energies / total if total > 0 else energies


def atom_overlaps(gram: torch.Tensor) -> torch.Tensor:
    """Absolute cosine between atoms (S, S). Invariant to scale. Zeros for atoms without norm."""
    norms = atom_norms(gram)
    product = norms.outer(norms)
    return torch.where(product > 0, (gram / product).abs().clamp(max=1), 0.0)


def dead_atoms(use: torch.Tensor, threshold: float = DEAD) -> list[int]:
    """Atoms whose use (S,), of `atom_use`, is below `threshold`. Invariant to scale."""
    return [index for index, value in enumerate(use.tolist()) if value < threshold]


def doubled_atoms(overlaps: torch.Tensor, threshold: float = DOUBLED) -> list[tuple[int, int]]:
    """Pairs of atoms whose overlap, of `atom_overlaps`, is at least `threshold`. Invariant to scale."""
    pairs = (overlaps.triu(diagonal=1) >= threshold).nonzero().tolist()
    return [(first, second) for first, second in pairs]


class CanonicalForm(NamedTuple):
    """The same weights on principal atoms: orthonormal, the one that captures most first."""

    coef: torch.Tensor
    """(L, R): what each principal atom adds to a layer, as a Frobenius norm with a sign."""
    energies: torch.Tensor
    """(R,): share of ``sum_l ||W_l||^2`` that each captures, in falling order."""
    basis: torch.Tensor
    """(R, S): principal atom r is ``sum_s basis[r, s] D_s``."""


def canonical_form(coef: torch.Tensor, gram: torch.Tensor) -> CanonicalForm:
    """Write the weights of all layers on their principal atoms (an SVD of the stacked weights).

    Coefficients and energies are invariant to mixing, and so the ones to compare between
    runs, as long as no two energies are equal (then their atoms are known as a plane only). Signs are
    chosen so that the largest coefficient of each atom is positive. Ours; it is Matrix PCA
    (https://arxiv.org/abs/2508.04581) of the composed weights. R <= min(L, S) leaves
    out what the weights do not span.
    """
    norms = atom_norms(gram)
    unit = torch.where(norms > 0, 1 / norms, 0.0)  # so that the scale of an atom cannot hide it
    coef, gram = coef.double() * norms, gram * unit.outer(unit)
    values, vectors = torch.linalg.eigh(gram)
    # dependent atoms have eigenvalues of zero but for rounding: their directions are left out
    keep = values > values.max().clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    values, vectors = values[keep], vectors[:, keep]
    # orthonormal atoms: vectors.T D / sqrt(values); the weights on them: C vectors sqrt(values)
    left, singular, right = torch.linalg.svd(coef @ vectors * values.sqrt(), full_matrices=False)
    largest = singular.max() if len(singular) else 0.0
    kept = singular > largest * 1e-7  # the Gram matrix squares what float32 weights can tell apart
    left, singular, right = left[:, kept], singular[kept], right[kept]
    amounts = left * singular
    signs = amounts.gather(0, amounts.abs().argmax(dim=0, keepdim=True)).sign().squeeze(0)
    energies = singular.square()
    return CanonicalForm(
        amounts * signs,
        energies / energies.sum() if len(energies) else energies,
        signs[:, None] * (right / values.sqrt()) @ vectors.T * unit,
    )
