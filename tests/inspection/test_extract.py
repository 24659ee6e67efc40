from __future__ import annotations

import pytest
import torch
from torch import nn

from masa_vit.inspection import coefficients


@pytest.mark.parametrize('kind', ['direct', 'mlp'])
def test_model_wrapper_and_state_dict_agree(small, kind):
    model = small(coefficients=kind, projections='qkv', dictionaries=['qv', 'k'])
    coefs = coefficients(model)
    assert list(coefs) == ['q', 'k', 'v']
    for source in (nn.Sequential(model), model.state_dict(), nn.Sequential(model).state_dict()):
        for name, coef in coefficients(source).items():
            assert torch.equal(coef, coefs[name])
    for index, block in enumerate(model.blocks):
        for name, row in block.attn.coef.values().items():
            assert torch.equal(coefs[name][index], row)


def test_composed_weights_are_c_times_atoms(small):
    model = small()
    for index, row in enumerate(coefficients(model)['o']):
        expected = torch.einsum('s,sij->ij', row, model.banks['o'].atoms)
        torch.testing.assert_close(model.blocks[index].attn.proj.weight, expected)


def test_dense_model_has_none(small):
    dense = small('vit_tiny_patch16_224')
    assert coefficients(dense) == {} == coefficients(dense.state_dict())


def test_two_models_that_share(small):
    pair = nn.ModuleDict({'student': small(), 'teacher': small()})
    for source in (pair, pair.state_dict()):
        with pytest.raises(ValueError, match='several stacks of blocks'):
            coefficients(source)
