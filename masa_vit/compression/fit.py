"""Fit atoms, coefficients and low-rank residuals to the weights of one projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from masa_vit.compression.metric import Metric
from masa_vit.compression.pca import matrix_pca
from masa_vit.layers import compose

_ROUNDS = {'first': 8, 'again': 2}
"""Of coefficients and atoms in turn, from Matrix PCA and from an earlier fit."""

_STEPS = 20
"""Of conjugate gradients for the atoms, in each round."""


Pairs = list[tuple[torch.Tensor, torch.Tensor]]
"""U (out, k) and V (k, in) of each layer; k may be 0."""


class Fit(NamedTuple):
    """``W_l ~ sum_s c_ls D_s + U_l V_l``, float64 but for atoms of an unweighted fit."""

    atoms: torch.Tensor
    """D (S, out, in)."""
    coef: torch.Tensor
    """C (L, S)."""
    residual: Pairs

    def shared(self) -> torch.Tensor:
        """Return the part of the weights from the atoms, (L, out, in)."""
        return compose(self.coef.to(self.atoms.device), self.atoms.double())

    def weights(self) -> torch.Tensor:
        """Return the approximation of the weights, (L, out, in)."""
        return self.shared() + torch.stack([up @ down for up, down in self.residual])


def fit_atoms(
    weights: torch.Tensor,
    num_atoms: int,
    metric: Metric | None = None,
    start: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find atoms (S, out, in) and coefficients (L, S) with the least cost of the error.

    Without a metric this is Matrix PCA. With one, alternating least squares from there (or from
    `start`): the coefficients of each layer solve S equations; the atoms are improved by conjugate
    gradients on the normal equations, preconditioned by the mean metric of the layers. The cost
    never grows.

    Args:
        weights: (L, out, in), float64.
        num_atoms: S.
        metric: Of the L layers.
        start: Atoms and coefficients, for a fit with a metric.
    """
    weighted = metric is not None and (metric.left is not None or metric.right is not None)
    rounds = _ROUNDS['first' if start is None else 'again']
    if start is None or not weighted:
        pca = matrix_pca(list(weights), num_atoms)
        start = pca.atoms.double(), pca.coef.to(weights)
    if metric is None or not weighted:
        return start
    atoms, coef = start
    moments = Metric(*(None if f is None else f @ f.mT for f in metric))  # G_l = Q Q^T, H_l = P P^T
    target = _weigh(weights, moments)  # G_l W_l H_l, (L, out, in)
    precondition = _preconditioner(moments)
    for _ in range(rounds):
        coef = _solve_coef(atoms, target, moments)
        atoms = _improve_atoms(atoms, coef, target, moments, precondition)
        # the cost fixes c D, not the scale of each: unit atoms keep both factors well conditioned
        norms = atoms.flatten(1).norm(dim=1).clamp(min=1e-30)  # (S,)
        atoms, coef = atoms / norms.view(-1, 1, 1), coef * norms
    return atoms, _solve_coef(atoms, target, moments)


def scale_for_training(
    atoms: torch.Tensor, coef: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move the scale of the weights from C into the atoms (in place); the weights stay.

    The rows of C then have unit norm in the root mean square, and atoms the scale of weights, as at the
    start of training. A step of Adam has the size of the learning rate: a large part of an orthonormal
    atom of a wide model (ours).
    """
    scale = coef.square().sum(1).mean().sqrt().item() or 1.0
    return atoms.mul_(scale), coef / scale


def _weigh(weights: torch.Tensor, moments: Metric) -> torch.Tensor:
    """G W H."""
    if moments.left is not None:
        weights = moments.left @ weights
    return weights if moments.right is None else weights @ moments.right


def _solve_coef(atoms: torch.Tensor, target: torch.Tensor, moments: Metric) -> torch.Tensor:
    """Solve ``sum_t <D_s, G_l D_t H_l> c_lt = <D_s, G_l W_l H_l>`` for each layer: C (L, S)."""
    rows = []
    flat = atoms.flatten(1)  # (S, out * in)
    for layer, weight in enumerate(target):
        gram = _weigh(atoms, moments.of([layer])).flatten(1) @ flat.T  # (S, S)
        # atoms may be dependent, for example where a weight is zero
        gram.diagonal().add_(1e-12 * gram.diagonal().mean())
        rows.append(torch.linalg.lstsq(gram, (flat @ weight.flatten()).unsqueeze(1)).solution[:, 0])
    return torch.stack(rows)


def _preconditioner(moments: Metric) -> Metric:
    """Cholesky factors of the layers' mean second moments, each layer counting alike."""
    factors: list[torch.Tensor | None] = []
    for moment in moments:
        if moment is None:
            factors.append(None)
            continue
        scale = (
            moment.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1)
        )  # mean variance of each layer
        factors.append(torch.linalg.cholesky((moment / scale).mean(0)))
    return Metric(*factors)


def _improve_atoms(
    atoms: torch.Tensor,
    coef: torch.Tensor,
    target: torch.Tensor,
    moments: Metric,
    precondition: Metric,
) -> torch.Tensor:
    """Conjugate gradients on ``sum_l c_ls G_l (sum_t c_lt D_t) H_l = sum_l c_ls G_l W_l H_l``."""

    def mix(atoms: torch.Tensor) -> torch.Tensor:  # (S, out, in) -> (L, out, in)
        return compose(coef, atoms)

    def gather(weights: torch.Tensor) -> torch.Tensor:  # the adjoint of mix
        return (coef.T @ weights.flatten(1)).view_as(atoms)

    def solve(residue: torch.Tensor) -> torch.Tensor:
        if precondition.left is not None:
            residue = torch.cholesky_solve(residue, precondition.left.expand(len(residue), -1, -1))
        if precondition.right is not None:
            right = precondition.right.expand(len(residue), -1, -1)
            residue = torch.cholesky_solve(residue.mT, right).mT
        return residue

    residue = gather(target - _weigh(mix(atoms), moments))
    direction = solved = solve(residue)
    product = (residue * solved).sum()
    stop = product * 1e-8  # of the squared residue: 1e-4 of its norm
    for _ in range(_STEPS):
        if not product > stop:
            break
        applied = gather(_weigh(mix(direction), moments))
        step = product / (direction * applied).sum()
        atoms, residue = atoms + step * direction, residue - step * applied
        solved = solve(residue)
        previous, product = product, (residue * solved).sum()
        direction = solved + product / previous * direction
    return atoms


def low_rank(weights: torch.Tensor, metric: Metric | None, ranks: Sequence[int]) -> Pairs:
    """Return the best approximation of each weight by a product U V of given rank.

    Truncated SVD of the whitened weight, taken back (the MASA paper's refinement, with our metric).

    Args:
        weights: (L, out, in), float64.
        metric: Of the L layers.
        ranks: k of each layer.

    Returns:
        U (out, k) and V (k, in) of each layer, with singular values split evenly between them.
    """
    pairs = []
    for layer, rank in enumerate(ranks):
        one = Metric() if metric is None else metric.of([layer])
        if not rank:
            pairs.append(no_residual(weights[layer]))
            continue
        # Eckart-Young in the whitened space: the truncation is optimal for the metric
        u, s, vh = torch.linalg.svd(one.whiten(weights[layer : layer + 1])[0], full_matrices=False)
        root = s[:rank].sqrt()
        up = Metric(one.left, None).whiten_back((u[:, :rank] * root).unsqueeze(0))[0]
        down = Metric(None, one.right).whiten_back((root.unsqueeze(1) * vh[:rank]).unsqueeze(0))[0]
        # whitening back changes the norms: give both factors of a rank the same
        balance = (down.norm(dim=1) / up.norm(dim=0).clamp(min=1e-30)).sqrt()
        pairs.append((up * balance, down / balance.clamp(min=1e-30).unsqueeze(1)))
    return pairs


def no_residual(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """U and V of rank 0, for a weight (out, in)."""
    return weight.new_empty(weight.shape[0], 0), weight.new_empty(0, weight.shape[1])


def spectra(weights: torch.Tensor, metric: Metric | None) -> torch.Tensor:
    """Singular values of the whitened weights, (L, min(out, in)), descending."""
    return torch.linalg.svdvals(weights if metric is None else metric.whiten(weights))
