"""Coefficients, atoms and weights, read from any form of a model."""

import pytest
import torch
from torch import nn

import masa_vit
from masa_vit import inspection
from masa_vit.layers import share_linears


@pytest.mark.parametrize(
    'args',
    [
        dict(num_atoms=2),
        dict(num_atoms=2, groups=[[0, 2], [1, 3]], residual_rank=2),
        dict(num_atoms=dict(q=1, k=2, v=3, o=3)),
        dict(num_atoms=2, projections='qk'),
        dict(num_atoms=4, dictionaries=['qv', 'k', 'o']),
        dict(num_atoms=2, coefficients='mlp'),
    ],
    ids=str,
)
def test_every_form_composes_the_weights_of_the_folded_model(noisy, args):
    model = noisy(**args)
    folded = masa_vit.fold(model)
    detector = nn.ModuleDict(dict(backbone=model))
    expected = {
        name: torch.stack([weight.chunk(3)[index] for weight in weights])
        for weights in [[block.attn.qkv.weight.detach() for block in folded.blocks]]
        for index, name in enumerate('qkv')
    }
    expected['o'] = torch.stack([block.attn.proj.weight.detach() for block in folded.blocks])
    for source in (model, model.state_dict(), detector, detector.state_dict(), folded):
        weights = inspection.projection_weights(source)
        assert weights.projections == ['q', 'k', 'v', 'o']
        assert weights.depth == 4
        for name, value in expected.items():
            torch.testing.assert_close(weights.compose(name), value, rtol=1e-5, atol=1e-5)


def test_atoms_and_coefficients_are_those_of_the_model(noisy):
    model = noisy(num_atoms=4, dictionaries=['qv', 'k', 'o'])
    weights = inspection.projection_weights(model)
    assert weights.dictionaries == dict(q='qv', k='k', v='qv', o='o')
    assert torch.equal(weights.atoms['v'], model.banks['qv'].atoms)
    assert weights.atoms['q'] is weights.atoms['v']
    assert torch.equal(weights.coef['k'], inspection.coefficients(model)['k'])
    assert weights.num_heads == 2


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)


def test_dictionaries_of_any_name_are_read_off_a_model():
    stack = nn.Module()
    stack.blocks = nn.ModuleList(Block() for _ in range(4))
    layout, dictionaries = {'fc1': ('ab',), 'fc2': ('a',)}, {'ab': ('ab',), 'other': ('a',)}
    stack.blocks = share_linears(stack.blocks, layout, dictionaries, num_atoms=2)
    weights = inspection.projection_weights(stack)
    assert weights.dictionaries == {'ab': 'ab', 'a': 'other'}
    for name, layer in (('ab', 'fc1'), ('a', 'fc2')):
        expected = torch.stack([getattr(block, layer).weight for block in stack.blocks])
        torch.testing.assert_close(weights.compose(name), expected)
    with pytest.raises(ValueError, match=r"\['a'\] have coefficients but no atoms.*give the model"):
        inspection.projection_weights(stack.state_dict())


def test_half_precision_is_read_as_float32(noisy):
    weights = inspection.projection_weights(noisy(num_atoms=2, residual_rank=1).bfloat16())
    assert weights.compose('q').dtype == torch.float32


def test_a_dense_model_shares_nothing_and_has_its_weights(noisy):
    weights = inspection.projection_weights(masa_vit.fold(noisy(num_atoms=2)))
    assert not weights.shares
    assert inspection.projection_weights(noisy(num_atoms=2)).shares


def test_what_has_no_attention_is_refused():
    with pytest.raises(ValueError, match='no attention projections'):
        inspection.projection_weights(nn.Linear(2, 2))


def test_two_models_in_one_are_refused(noisy):
    both = nn.ModuleDict(dict(a=masa_vit.fold(noisy()), b=masa_vit.fold(noisy())))
    with pytest.raises(ValueError, match=r"\['a.blocks.', 'b.blocks.'\]"):
        inspection.projection_weights(both)


@pytest.mark.parametrize('kind', ['direct', 'mlp'])
def test_model_wrapper_and_state_dict_agree(small, kind):
    model = small(coefficients=kind, projections='qkv', dictionaries=['qv', 'k'])
    coefs = inspection.coefficients(model)
    assert list(coefs) == ['q', 'k', 'v']
    for source in (nn.Sequential(model), model.state_dict(), nn.Sequential(model).state_dict()):
        for name, coef in inspection.coefficients(source).items():
            assert torch.equal(coef, coefs[name])
    for index, block in enumerate(model.blocks):
        for name, row in block.attn.coef.values().items():
            assert torch.equal(coefs[name][index], row)


def test_composed_weights_are_c_times_atoms(small):
    model = small()
    for index, row in enumerate(inspection.coefficients(model)['o']):
        expected = torch.einsum('s,sij->ij', row, model.banks['o'].atoms)
        torch.testing.assert_close(model.blocks[index].attn.proj.weight, expected)


def test_dense_model_has_none(small):
    dense = small('vit_tiny_patch16_224')
    assert inspection.coefficients(dense) == {} == inspection.coefficients(dense.state_dict())


def test_two_models_that_share(small):
    pair = nn.ModuleDict({'student': small(), 'teacher': small()})
    for source in (pair, pair.state_dict()):
        with pytest.raises(ValueError, match='several stacks of blocks'):
            inspection.coefficients(source)
