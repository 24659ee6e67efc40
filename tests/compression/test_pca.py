from __future__ import annotations

import pytest
import torch

from masa_vit.compression import matrix_pca


@pytest.mark.parametrize('shape', [(6, 5), (300, 401)], ids=['one piece', 'several pieces'])
@pytest.mark.parametrize('num_atoms', [1, 3, 5])
def test_error_is_the_sum_of_the_discarded_eigenvalues(shape, num_atoms):
    weights = [torch.randn(shape) for _ in range(5)]
    atoms, coef, eigenvalues = matrix_pca(weights, num_atoms)
    stacked = torch.stack(weights).double()
    error = (stacked - torch.tensordot(coef, atoms.double(), 1)).square().sum()
    total = stacked.square().sum()
    torch.testing.assert_close(error, eigenvalues[num_atoms:].sum(), rtol=1e-6, atol=1e-12 * total)
    torch.testing.assert_close(eigenvalues.sum(), total)
    singular = torch.linalg.svdvals(stacked.flatten(1))
    torch.testing.assert_close(eigenvalues, singular.square())
    torch.testing.assert_close(
        coef, torch.einsum('lij,sij->ls', stacked, atoms.double()), rtol=0, atol=1e-4
    )
    _assert_orthonormal(atoms)


def _assert_orthonormal(atoms: torch.Tensor) -> None:
    rows = atoms.flatten(1).double()  # float32 sums would add rounding errors
    expected = torch.eye(len(rows), dtype=torch.float64)
    torch.testing.assert_close(rows @ rows.T, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('rank', [0, 1, 2])
def test_alike_layers_leave_atoms_that_can_train(rank):
    directions = torch.randn(rank, 6, 5)
    weights = list(torch.tensordot(torch.randn(5, rank), directions, 1))
    state = torch.get_rng_state()
    atoms, coef, _ = matrix_pca(weights, 4)
    assert torch.equal(torch.get_rng_state(), state)
    composed = torch.tensordot(coef.float(), atoms, 1)
    torch.testing.assert_close(composed, torch.stack(weights), rtol=0, atol=1e-5)
    _assert_orthonormal(atoms)
    assert (coef[:, rank:] == 0).all()
