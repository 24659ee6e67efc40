from __future__ import annotations

import pytest
import torch

from masa_vit.layers import AtomBank


def test_compose_is_the_weighted_sum_of_atoms():
    bank = AtomBank(3, 5, 7)
    coef = torch.randn(3)
    expected = sum(c * atom for c, atom in zip(coef, bank.atoms, strict=True))
    torch.testing.assert_close(bank(coef), expected)
    assert bank(coef).shape == (5, 7)


def test_gradients_of_atoms_and_coefficients():
    bank = AtomBank(3, 4, 5, dtype=torch.float64)
    coef = torch.randn(3, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(4, 5, dtype=torch.float64)
    bank(coef).backward(grad)
    torch.testing.assert_close(bank.atoms.grad, coef.detach()[:, None, None] * grad)
    torch.testing.assert_close(coef.grad, (bank.atoms.detach() * grad).sum((1, 2)))


def test_composes_in_the_dtype_of_the_atoms_under_autocast():
    bank = AtomBank(4, 32, 32)
    coef = torch.randn(4)
    with torch.autocast('cpu', torch.bfloat16):
        weight = bank(coef)
    assert weight.dtype == torch.float32
    assert torch.equal(weight, bank(coef))


def test_composes_several_layers_at_once():
    bank = AtomBank(3, 5, 7, dtype=torch.float64)
    coef = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(bank(coef), torch.stack([bank(row) for row in coef]))


def test_every_atom_parameter_says_so_in_its_name():
    assert [name for name, _ in AtomBank(2, 3, 3).named_parameters()] == ['atoms']


@pytest.mark.parametrize('num_atoms', [0, -1, 2.0, True])
def test_wrong_number_of_atoms(num_atoms):
    with pytest.raises(ValueError, match='num_atoms must be an integer >= 1'):
        AtomBank(num_atoms, 3, 3)
