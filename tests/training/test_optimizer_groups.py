"""Optimizer groups come from the model."""

import logging

import pytest
import timm
import torch
import toy
from mmengine.optim import build_optim_wrapper
from torch import nn

import masa_vit  # noqa: F401
from masa_vit.training.optimizer_groups import (
    BFloat16OptimWrapper,
    LayerDecayOptimWrapperConstructor,
)


def build(model, weight_decay=0.05, **paramwise):
    return build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            constructor='LayerDecayOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1e-2, weight_decay=weight_decay),
            paramwise_cfg=paramwise,
        ),
    )


def settings(model, wrapper):
    """Parameter name -> (lr, weight decay); every parameter once."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = [
        (names[id(p)], (group['lr'], group['weight_decay']))
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    ]
    assert len(found) == len(dict(found)) == len(names)
    return dict(found)


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'vit_tiny_masa_s2'])
def test_layer_decay(name):
    model = toy.ToyViT(name)
    wrapper = build(model, layer_decay=0.5)
    of = settings(model, wrapper)
    assert of['body.2.weight'] == (1e-2, 0.05)  # outside the timm model
    assert of['body.1.head.weight'] == (1e-2, 0.05)
    assert of['body.1.blocks.1.mlp.fc1.weight'] == (0.5e-2, 0.05)
    assert of['body.1.blocks.0.mlp.fc1.weight'] == (0.25e-2, 0.05)
    assert of['body.1.blocks.0.mlp.fc1.bias'] == (0.25e-2, 0.0)
    assert of['body.1.patch_embed.proj.weight'] == (0.125e-2, 0.05)
    assert of['body.1.pos_embed'] == (0.125e-2, 0.0)  # no_weight_decay()
    timm_model = model.body[1]
    for parameter in timm_model.no_weight_decay():
        matching = [d for n, (_, d) in of.items() if n == f'body.1.{parameter}']
        assert all(decay == 0 for decay in matching)
    lrs = [group['lr'] for group in wrapper.optimizer.param_groups]
    assert lrs == sorted(lrs, reverse=True)
    assert len(lrs) <= 2 * 5
    assert wrapper.get_lr() == {'lr': lrs}


def test_without_layer_decay_two_groups():
    model = toy.ToyViT('vit_tiny_masa_s2')
    assert len(build(model).optimizer.param_groups) == 2
    assert len(build(model, layer_decay=None).optimizer.param_groups) == 2
    assert len(build(model, weight_decay=0).optimizer.param_groups) == 1


def test_frozen_parameters_are_left_out():
    model = toy.ToyViT('vit_tiny_patch16_224')
    model.body[1].requires_grad_(False)
    groups = build(model, layer_decay=0.5).optimizer.param_groups
    assert sum(len(g['params']) for g in groups) == 2


def test_model_that_knows_nothing():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    assert settings(model, build(model)) == {
        '0.weight': (1e-2, 0.05), '0.bias': (1e-2, 0.0),
        '1.weight': (1e-2, 0.0), '1.bias': (1e-2, 0.0),
    }  # fmt: skip


def test_a_parameter_in_two_groups_is_an_error():
    model = nn.ModuleDict({k: toy.ToyViT('vit_tiny_patch16_224').body[1] for k in 'ab'})
    model['b'].pos_embed = model['a'].pos_embed
    with pytest.raises(ValueError, match=r"'a\.pos_embed.*2 optimizer groups"):
        build(model)


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'vit_tiny_masa_s2'])
def test_heads_are_the_layer_after_a_model_without_classifier(name):
    """As in ViTDet: the last block of a backbone has the rate of the heads times the decay."""
    model = toy.ToyViT(name)
    model.body[1].reset_classifier(0, '')
    model.body[1].norm = nn.Identity()
    of = settings(model, build(model, layer_decay=0.5))
    assert of['body.2.weight'] == (1e-2, 0.05)
    assert of['body.1.blocks.1.mlp.fc1.weight'] == (0.5e-2, 0.05)
    assert of['body.1.patch_embed.proj.weight'] == (0.125e-2, 0.05)
    if 'masa' in name:  # of two blocks the middle one is the second
        assert of['body.1.blocks.attn_banks.q.atoms'] == (0.5e-2, 0.05)
        assert of['body.1.blocks.0.attn.coef.q'] == (0.25e-2, 0.0)


@pytest.mark.parametrize(
    ('paramwise', 'message'),
    [({'layer_decy': 0.5}, 'layer_decy'), ({'layer_decay': 1.5}, r'1\.5.*\(0, 1\]')],
)
def test_bad_settings(paramwise, message):
    with pytest.raises(ValueError, match=message):
        build(nn.Linear(2, 2), **paramwise)
    with pytest.raises(ValueError, match='no lr'):
        LayerDecayOptimWrapperConstructor(dict(optimizer=dict(type='AdamW')))


def test_table_is_logged_once(caplog):
    from mmengine.logging import MMLogger

    logger = MMLogger.get_instance('table')
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        build(toy.ToyViT('vit_tiny_patch16_224'), layer_decay=0.5)
    tables = [r.getMessage() for r in caplog.records if 'Optimizer groups' in r.getMessage()]
    assert len(tables) == 1
    assert '0.1250' in tables[0]


def test_bfloat16_wrapper_casts_the_forward_only():
    model = nn.Linear(4, 1)
    wrapper = BFloat16OptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with wrapper.optim_context(model):
        out = model(torch.ones(2, 4))
    assert out.dtype == torch.bfloat16
    before = model.weight.detach().clone()
    wrapper.update_params(out.float().sum())
    assert model.weight.dtype == torch.float32
    assert not torch.equal(before, model.weight)


def test_multipliers_of_atoms_and_coefficients():
    model = timm.create_model('vit_tiny_masa_s2', depth=2, coefficients='mlp')
    of = settings(model, build(model, atom_lr_mult=0.5, coef_lr_mult=10))
    assert of['blocks.attn_banks.q.atoms'] == (0.5e-2, 0.05)
    assert of['blocks.1.attn.coef.embedding'] == of['blocks.attn_generator.bias1'] == (0.1, 0.0)
    assert of['blocks.1.mlp.fc1.weight'] == (1e-2, 0.05)


def test_the_group_of_the_full_rate_is_logged_first():
    model = timm.create_model('vit_tiny_masa_s2', depth=2)
    wrapper = build(model, coef_lr_mult=10)
    assert wrapper.optimizer.param_groups[0]['lr'] == 1e-2
    with pytest.raises(ValueError, match='expected positive numbers'):
        build(model, atom_lr_mult=0)
