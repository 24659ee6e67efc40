from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import masa_vit
from masa_vit.inspection import count_parameters


def test_vit_base_as_in_the_paper():
    with torch.device('meta'):
        dense = count_parameters(timm.create_model('vit_base_patch16_224'))
        masa = count_parameters(masa_vit.bake(timm.create_model('vit_base_masa_s4')))
        qkv = count_parameters(timm.create_model('vit_base_masa_qkv_s4'))
    assert (dense.attention, dense.total) == (28_311_552, 86_567_656)
    assert not dense.shared
    assert (masa.attention, masa.total) == (9_437_184 + 192, 67_693_480)
    assert (masa.dense_attention, masa.dense_total) == (dense.attention, dense.total)
    assert masa.shared
    assert masa.attention_removed == pytest.approx(0.667, abs=1e-3)
    assert masa.total_removed == pytest.approx(0.218, abs=1e-3)
    assert qkv.attention_removed == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    'kwargs', [{'coefficients': 'mlp'}, {'projections': 'qo'}, {'qk_norm': True}]
)
def test_dense_counts_are_those_of_the_dense_baseline(small, kwargs):
    timm_kwargs = {k: v for k, v in kwargs.items() if k == 'qk_norm'}
    dense = count_parameters(small('vit_tiny_patch16_224', **timm_kwargs))
    masa = count_parameters(nn.Sequential(small(**kwargs)))
    assert (masa.dense_attention, masa.dense_total) == (dense.attention, dense.total)
    folded = count_parameters(masa_vit.fold(small(**kwargs)))
    assert folded == dense


def test_attention_pooling_is_no_attention_layer(small):
    dense = count_parameters(small('vit_tiny_patch16_224', global_pool='map', class_token=False))
    assert dense.dense_attention == 4 * 4 * 32 * 32
    assert not dense.shared
