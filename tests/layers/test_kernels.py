from __future__ import annotations

import pytest
import torch

from masa_vit.layers import kernels
from masa_vit.layers.kernels import compose_rows, composition_gradients

SIZES = [(5, 3, 7, 11), (1, 4, 8, 8), (12, 4, 130, 127), (4, 1, 64, 160)]
"""(L, S, out, in): rows shorter and longer than one partial sum, and no multiple of it."""


def operands(num_layers: int, num_atoms: int, out: int, inputs: int, dtype=torch.float32):
    coef = torch.randn(num_layers, num_atoms, dtype=dtype)
    atoms = torch.randn(num_atoms, out, inputs, dtype=dtype)
    strided = torch.randn(num_layers, 3, out * inputs, dtype=dtype)[:, 1]
    return coef, atoms, strided


@pytest.mark.parametrize('size', SIZES)
def test_weights_are_written_where_they_belong(size):
    coef, atoms, out = operands(*size)
    neighbours = out._base.clone()
    compose_rows(out, coef, atoms)
    expected = torch.einsum('ls,soi->loi', coef.double(), atoms.double())
    torch.testing.assert_close(out, expected.flatten(1).float())
    assert torch.equal(out._base[:, [0, 2]], neighbours[:, [0, 2]])


@pytest.mark.parametrize('size', SIZES)
def test_gradients(size):
    coef, atoms, grads = operands(*size)
    exact_coef, exact_atoms = (t.double().requires_grad_() for t in (coef, atoms))
    weights = torch.einsum('ls,soi->loi', exact_coef, exact_atoms)
    weights.backward(grads.double().view_as(weights))
    grad_coef, grad_atoms = composition_gradients(grads, coef, atoms)
    torch.testing.assert_close(grad_coef, exact_coef.grad.float(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(grad_atoms, exact_atoms.grad.float())
    assert composition_gradients(grads, coef, atoms, need_coef=False)[0] is None
    assert composition_gradients(grads, coef, atoms, need_atoms=False)[1] is None


@pytest.mark.parametrize('low', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('size', SIZES)
def test_low_precision_rounds_the_full_one_once(size, low, monkeypatch):
    monkeypatch.setattr(kernels, '_PIECE', 1000)  # several pieces
    coef, atoms, out = operands(*size)
    compose_rows(out, coef, atoms)
    rounded = torch.empty_like(out, dtype=low)
    compose_rows(rounded, coef, atoms)
    assert torch.equal(rounded, out.to(low))

    grads = out.to(low)
    got = composition_gradients(grads, coef, atoms)
    expected = composition_gradients(grads.float(), coef, atoms)
    assert got[0].dtype == got[1].dtype == torch.float32
    torch.testing.assert_close(got[0], expected[0], atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(got[1], expected[1])
