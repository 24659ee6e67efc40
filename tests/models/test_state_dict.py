"""Names of tensors: read once, and files of earlier versions load."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import masa_vit
from masa_vit import inspection
from masa_vit.models.state_dict import merge_pruned, read_stack, rename_old_keys

DATA = Path(__file__).parent / 'data'
SIZE = {
    'img_size': 8,
    'patch_size': 4,
    'embed_dim': 8,
    'depth': 3,
    'num_heads': 2,
    'num_classes': 2,
    'mlp_ratio': 1.0,
}
OLD = {
    'mlp': {'coefficients': 'mlp', 'coef_embed_dim': 4, 'coef_hidden_dim': 4, 'num_atoms': 2},
    'groups': {
        'groups': [[0, 2], [1]],
        'num_atoms': 1,
        'dictionaries': ['qv', 'k', 'o'],
        'residual_rank': {'q': 0, 'k': 0, 'v': 1, 'o': [0, 1, 0]},
    },
}
"""Models of the stored files, which version 0.1 wrote together with an output."""


def stored(name: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    state = load_file(DATA / f'version_0_1_{name}.safetensors')
    return state, state.pop('_output')


def images() -> torch.Tensor:
    return torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)


@pytest.mark.parametrize('name', OLD)
@pytest.mark.parametrize('prefix', ['', 'module.', 'model.'])
def test_files_of_version_0_1_load(name, prefix, tmp_path):
    state, output = stored(name)
    model = timm.create_model('vit_tiny_masa_s2', **SIZE, **OLD[name]).eval()
    model.load_state_dict(dict(state))
    torch.testing.assert_close(model(images()), output)

    file = tmp_path / 'old.pth'
    torch.save({'state_dict': {prefix + key: value for key, value in state.items()}}, file)
    again = timm.create_model('vit_tiny_masa_s2', **SIZE, **OLD[name]).eval()
    report = masa_vit.load_weights(again, file)
    assert not report.missing
    assert not report.unexpected
    torch.testing.assert_close(again(images()), output)
    folded = masa_vit.load_folded(file, 'vit_tiny_masa_s2', **SIZE, **OLD[name]).eval()
    torch.testing.assert_close(folded(images()), output)
    coefs = inspection.coefficients(state)
    torch.testing.assert_close(coefs, inspection.coefficients(model))


def test_old_mlp_file_into_a_direct_model():
    state, output = stored('mlp')
    model = timm.create_model('vit_tiny_masa_s2', **SIZE).eval()
    model.load_state_dict(state)
    torch.testing.assert_close(model(images()), output)


def test_names_of_today_stay():
    model = timm.create_model('vit_tiny_masa_s2', **SIZE, **OLD['groups'])
    state = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    keys = list(state)
    assert not rename_old_keys(state)
    assert list(state) == keys


def test_read_by_role():
    model = timm.create_model(
        'vit_tiny_masa_s2', **SIZE, **{**OLD['groups'], 'projections': 'qkvo'}
    )
    stack = read_stack({f'backbone.{key}': value for key, value in model.state_dict().items()})
    assert stack.stack == 'backbone.blocks.'
    assert stack.atoms.keys() == model.banks.keys()
    assert stack.coef[2].keys() == set('qkvo')
    assert {name: [*of] for name, of in stack.residuals.items()} == {'v': [0, 1, 2], 'o': [1]}
    assert stack.num_coefficients == 12
    assert not stack.dense
    dense = read_stack(timm.create_model('vit_tiny_patch16_224', **SIZE).state_dict())
    assert [*dense.dense] == ['q', 'k', 'v', 'o']
    assert dense.dense['k'][2].shape == (8, 8)


def test_several_stacks_are_refused():
    state = timm.create_model('vit_tiny_masa_s2', **SIZE).state_dict()
    both = {
        f'{name}.{key}': value for name in ('student', 'teacher') for key, value in state.items()
    }
    with pytest.raises(ValueError, match=r"\['student.blocks.', 'teacher.blocks.'\]"):
        read_stack(both)


def test_dense_stacks_beside_one_that_shares_are_ignored():
    student = timm.create_model('vit_tiny_masa_s2', **SIZE).state_dict()
    teacher = timm.create_model('vit_tiny_patch16_224', **SIZE).state_dict()
    both = {f'student.{key}': value for key, value in student.items()}
    both |= {f'teacher.{key}': value for key, value in teacher.items()}
    assert read_stack(both).stack == 'student.blocks.'
    assert not read_stack(both).dense
    stages = {f'layers.{i}.{key}': value for i in (0, 1) for key, value in teacher.items()}
    assert inspection.coefficients(stages) == {}
    with pytest.raises(ValueError, match='several stacks of blocks have attention projections'):
        inspection.projection_weights(stages)


def test_half_precision_files_are_composed_in_float32(tmp_path):
    model = timm.create_model('vit_tiny_masa_s2', **SIZE).eval()
    state = {key: v.bfloat16() if v.ndim > 1 else v for key, v in model.state_dict().items()}
    torch.save(state, tmp_path / 'half.pth')
    model.load_state_dict(state)
    expected = masa_vit.fold(model).bfloat16()
    found = masa_vit.load_folded(tmp_path / 'half.pth', 'vit_tiny_masa_s2', torch.bfloat16, **SIZE)
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_pruned_tensors_are_multiplied_out():
    state = {'a_orig': torch.ones(3), 'a_mask': torch.tensor([1.0, 0, 1]), 'b_orig': torch.ones(1)}
    merge_pruned(state, {'a': None, 'b': None})
    assert state['a'].tolist() == [1, 0, 1]
    assert sorted(state) == ['a', 'b_orig']
