from __future__ import annotations

import pytest
import torch

from masa_vit.layers import (
    CoefficientGenerator,
    DirectCoefficients,
    FrozenCoefficients,
    MlpCoefficients,
    assign_coefficients,
    orthogonal_coefficients,
)


@pytest.mark.parametrize(('num_layers', 'num_atoms'), [(12, 4), (4, 4), (7, 3), (5, 1)])
def test_orthogonal_coefficients(num_layers, num_atoms):
    coef = orthogonal_coefficients(num_layers, num_atoms)
    assert coef.shape == (num_layers, num_atoms)
    torch.testing.assert_close(coef.norm(dim=1), torch.ones(num_layers))
    run = coef[:num_atoms]
    torch.testing.assert_close(run @ run.T, torch.eye(num_atoms), atol=1e-5, rtol=0)


def test_direct_coefficients_train():
    source = DirectCoefficients({'q': torch.randn(3), 'o': torch.randn(2)})
    source()['o'].sum().backward()
    assert torch.equal(source.o.grad, torch.ones(2))
    assert {n for n, _ in source.named_parameters()} == {'q', 'o'}


def test_frozen_coefficients_are_saved_but_not_trained():
    source = FrozenCoefficients({'q': torch.tensor([1.0, 0.0])})
    assert list(source.parameters()) == []
    assert list(source.state_dict()) == ['q']


def test_mlp_starts_at_the_given_coefficients():
    generator = CoefficientGenerator({'q': 3, 'k': 2}, embed_dim=16, hidden_dim=16)
    sources = [MlpCoefficients(generator) for _ in range(6)]
    targets = {'q': torch.randn(6, 3), 'k': torch.randn(6, 2)}
    assign_coefficients(sources, targets)
    for name, coef in targets.items():
        got = torch.stack([source.values()[name] for source in sources])
        torch.testing.assert_close(got, coef, atol=1e-4, rtol=1e-4)


def test_mlp_trains_embeddings_and_generator_and_registers_the_generator_once():
    generator = CoefficientGenerator({'q': 3}, embed_dim=8, hidden_dim=8)
    source = MlpCoefficients(generator)
    assert [n for n, _ in source.named_parameters()] == ['embedding']
    source()['q'].sum().backward()
    params = [*source.parameters(), *generator.parameters()]
    assert all(p.grad is not None for p in params)
    assert source.embedding.grad.abs().sum() > 0


def test_mlp_keeps_float32_under_autocast():
    generator = CoefficientGenerator({'q': 3}, embed_dim=8, hidden_dim=8)
    source = MlpCoefficients(generator)
    with torch.autocast('cpu', torch.bfloat16):
        row = source()['q']
    assert row.dtype == torch.float32
    assert torch.equal(row, source()['q'])


def test_wrong_width():
    with pytest.raises(ValueError, match='hidden_dim=0'):
        CoefficientGenerator({'q': 3}, embed_dim=8, hidden_dim=0)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    generator = CoefficientGenerator({'q': 3}, embed_dim=16, hidden_dim=16, dtype=dtype)
    sources = [MlpCoefficients(generator, dtype=dtype) for _ in range(4)]
    targets = {'q': orthogonal_coefficients(4, 3)}
    assign_coefficients(sources, targets)
    for source, row in zip(sources, targets['q'], strict=True):
        torch.testing.assert_close(source.values()['q'].float(), row, atol=0.1, rtol=0)
