from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn


def test_checkpoint_with_an_mlp_loads_into_a_direct_model_and_says_so(small, images, caplog):
    trained = small(coefficients='mlp')
    model = small(coefficients='direct')
    with caplog.at_level(logging.INFO, 'masa_vit'):
        model.load_state_dict(trained.state_dict())
    assert 'come from an MLP' in caplog.text
    torch.testing.assert_close(model(images), trained(images), atol=1e-6, rtol=0)


def test_direct_checkpoint_into_a_model_with_an_mlp(small):
    with pytest.raises(ValueError, match=r"coefficients='direct'.*masa_vit\.bake"):
        small(coefficients='mlp').load_state_dict(small().state_dict())


def test_dense_checkpoint_into_a_masa_model(small):
    state = small('vit_tiny_patch16_224').state_dict()
    for strict in (True, False):
        with pytest.raises(ValueError, match='the checkpoint is dense') as error:
            small().load_state_dict(state, strict=strict)
        assert 'ompress' in str(error.value)
    wrapped = nn.Sequential(small())
    with pytest.raises(ValueError, match='the checkpoint is dense'):
        wrapped.load_state_dict({f'0.{key}': value for key, value in state.items()})


def test_dense_jax_checkpoint(small, tmp_path):
    """timm reads .npz by the model's `load_pretrained`, which writes into composed weights."""
    path = tmp_path / 'dense.npz'
    np.savez(path, **{'embedding/kernel': np.ones((8, 8, 3, 32), np.float32)})
    with pytest.raises(ValueError, match='is a dense checkpoint'):
        small(checkpoint_path=str(path))
    with pytest.raises(ValueError, match='is a dense checkpoint'):
        small().load_pretrained(str(path))


def test_less_is_shared_than_in_the_model(small):
    with pytest.raises(ValueError, match=r"projections='qkv'"):
        small().load_state_dict(small(projections='qkv').state_dict())


def test_other_widths_of_the_coefficient_mlp(small):
    narrow = small(coefficients='mlp', coef_embed_dim=16, coef_hidden_dim=24)
    with pytest.raises(ValueError, match='coef_embed_dim=16, coef_hidden_dim=24'):
        small(coefficients='mlp').load_state_dict(narrow.state_dict())


def test_frozen_coefficients_are_not_replaced(small):
    one_hot = torch.eye(2)[[0, 0, 1, 1]].tolist()
    model = small(coefficients='frozen', coef=one_hot)
    with pytest.raises(ValueError, match='created with the frozen ones'):
        model.load_state_dict(small().state_dict())
    model.load_state_dict(small(coefficients='frozen', coef=one_hot).state_dict())


def test_another_number_of_atoms(small):
    with pytest.raises(ValueError, match=r'S=3 atoms in dictionary .* create .* num_atoms=3'):
        small(num_atoms=2).load_state_dict(small(num_atoms=3).state_dict())


def test_other_dictionaries(small):
    with pytest.raises(ValueError, match=r"projections='qkvo', dictionaries=\['qkv', 'o'\]"):
        small().load_state_dict(small(dictionaries=['qkv', 'o']).state_dict())


def test_create_model_with_checkpoint_path(small, images, tmp_path):
    trained = small()
    torch.save(trained.state_dict(), tmp_path / 'weights.pth')
    assert torch.equal(
        small(checkpoint_path=str(tmp_path / 'weights.pth'))(images), trained(images)
    )
