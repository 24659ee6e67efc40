"""Layers in groups, numbers of atoms that differ, and a part of a weight that is a layer's own."""

from __future__ import annotations

import re

import pytest
import timm
import torch

import masa_vit
from masa_vit.inspection import coefficients
from masa_vit.models import MasaVisionTransformer
from masa_vit.models.state_dict import read_stack

SIZE = {
    'img_size': 32,
    'patch_size': 8,
    'embed_dim': 32,
    'depth': 4,
    'num_heads': 2,
    'num_classes': 3,
}
GROUPED = {
    'groups': [[0, 3], [1, 2]],
    'num_atoms': {'q': 1, 'k': [1, 2], 'v': [2, 1], 'o': 1},
    'residual_rank': {'v': 2, 'o': [0, 1, 2, 3]},
}


def create(**kwargs) -> MasaVisionTransformer:
    torch.manual_seed(0)
    return timm.create_model('vit_tiny_masa_s2', **{**SIZE, **kwargs}).eval()


def fill(model) -> None:
    """Residuals start at zero, where nothing can be seen."""
    for name, param in model.named_parameters():
        if '.up_' in name:
            torch.nn.init.normal_(param, std=0.1)


def test_banks_and_shapes():
    model = create(**GROUPED)
    atoms = {name: bank.num_atoms for name, bank in model.banks.items()}
    assert atoms == {
        'q_0_3': 1, 'q_1to2': 1, 'k_0_3': 1, 'k_1to2': 2,
        'v_0_3': 2, 'v_1to2': 1, 'o_0_3': 1, 'o_1to2': 1,
    }  # fmt: skip
    assert model.blocks[2].attn.coef.k.shape == (2,)
    assert model.blocks[2].attn.qkv.up_v.shape == (32, 2)
    assert model.blocks[2].attn.proj.down_o.shape == (2, 32)
    assert not hasattr(model.blocks[0].attn.proj, 'up_o')
    assert model.dictionaries['k_1to2'] == (('k',), (1, 2), 2)


@pytest.mark.parametrize('training', [True, False])
def test_folds_to_the_same_function(training):
    model = create(**GROUPED)
    fill(model)
    x = torch.randn(2, 3, 32, 32)
    model.train(training)
    assert torch.equal(masa_vit.fold(model)(x), model(x))


def test_everything_trains():
    model = create(**GROUPED).train()
    fill(model)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(param.grad is not None and param.grad.any() for param in model.parameters())


def test_starts_with_the_variance_of_the_dense_model():
    torch.manual_seed(0)
    args = {**SIZE, 'embed_dim': 96}
    model = timm.create_model('vit_tiny_masa_s2', **args, groups=[[0], [1, 2, 3]], num_atoms=[1, 2])
    for block in model.blocks:
        assert 0.018 < float(block.attn.qkv.weight.detach().std()) < 0.022


def test_hub_layout(tmp_path):
    model = create(**GROUPED)
    fill(model)
    timm.models.save_for_hf(model, tmp_path, model_config={'architecture': 'vit_tiny_masa_s2'})
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, **SIZE, **GROUPED).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again(x), model(x))


def test_a_file_is_loaded_into_the_folded_model(tmp_path):
    model = create(**GROUPED)
    fill(model)
    torch.save(model.state_dict(), tmp_path / 'masa.pth')
    dense = masa_vit.load_folded(tmp_path / 'masa.pth', 'vit_tiny_masa_s2', **SIZE, **GROUPED)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(dense.eval()(x), model(x))


def test_coefficients_have_columns_for_each_group():
    model = create(**GROUPED)
    coefs = coefficients(model)
    assert coefs['k'].shape == (4, 3)
    assert torch.equal(
        coefs['k'] != 0, torch.tensor([[1, 0, 0], [0, 1, 1], [0, 1, 1], [1, 0, 0]]) > 0
    )
    torch.testing.assert_close(coefficients(model.state_dict()), coefs)


RANKS = {'residual_rank': {'q': 6, 'o': [0, 1, 2, 3]}}
CURE = (
    "create the model with num_atoms=2, projections='qkvo', "
    "residual_rank={'q': 6, 'k': 0, 'v': 0, 'o': [0, 1, 2, 3]}"
)


def test_other_groups_are_named():
    state = create(**GROUPED).state_dict()
    cure = (
        "num_atoms={'q': 1, 'k': [1, 2], 'v': [2, 1], 'o': 1}, projections='qkvo', "
        "groups=[[0, 3], [1, 2]], residual_rank={'q': 0, 'k': 0, 'v': 2, 'o': [0, 1, 2, 3]}"
    )
    with pytest.raises(ValueError, match=re.escape(cure)):
        create().load_state_dict(state)


@pytest.mark.parametrize('kwargs', [{}, {'residual_rank': 4}])
@pytest.mark.parametrize('strict', [True, False])
def test_other_residuals_are_named(kwargs, strict):
    state = create(**RANKS).state_dict()
    with pytest.raises(ValueError, match=re.escape(CURE)) as error:
        create(**kwargs).load_state_dict(state, strict=strict)
    assert "residual of rank 6 for 'q' in blocks.0.attn.qkv, the model" in str(error.value)


def test_what_it_says_creates_the_model_that_fits():
    for kwargs in (GROUPED, RANKS, {'dictionaries': ['qv', 'k'], 'projections': 'qkv'}):
        state = {f'a.{key}': value for key, value in create(**kwargs).state_dict().items()}
        args = read_stack(state).sharing_args()
        create(**args).load_state_dict({k.removeprefix('a.'): v for k, v in state.items()})


def test_a_model_may_gain_residuals():
    model = create(**RANKS)
    missing = model.load_state_dict(create().state_dict(), strict=False).missing_keys
    assert {name.split('.')[-1][:-2] for name in missing} == {'down', 'up'}


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'groups': [[0, 1], [1, 2, 3]]}, '0 to 3 in exactly one of them'),
        ({'groups': [[0, 1], [], [2, 3]]}, 'lists of layers, none empty'),
        ({'groups': [1, 2]}, 'expected lists of layers'),
        ({'groups': [[0], [1, 2, 3]]}, r"num_atoms=2 is larger than .* 1, that share dictionary 'q_0'"),
        ({'num_atoms': [1, 2]}, r"num_atoms of 'q' is \[1, 2\], expected one number or 1"),
        ({'num_atoms': {'q': 1}}, r'expected one entry for each dictionary'),
        ({'residual_rank': {'x': 1}}, r'expected one entry for each projection'),
        ({'residual_rank': {'q': [1, 2]}}, r"residual_rank of 'q' is \[1, 2\], expected one"),
        ({'residual_rank': 33}, r"residual ranks of 'q' .* integers from 0 to 32"),
        ({'residual_rank': -1}, r'integers from 0 to 32'),
        ({'residual_rank': 1.5}, r'integers from 0 to 32'),
    ],
)  # fmt: skip
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create(**kwargs)
