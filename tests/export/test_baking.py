from __future__ import annotations

import pytest
import torch
from torch import nn

import masa_vit


def test_bake_keeps_the_output_and_drops_the_generator(small, images):
    model = small(coefficients='mlp')
    expected = model(images)
    assert masa_vit.bake(model) is model
    torch.testing.assert_close(model(images), expected, atol=1e-6, rtol=0)
    assert model.generator is None
    assert not any('generator' in key or 'embedding' in key for key in model.state_dict())
    model(images).sum().backward()
    assert all(block.attn.coef.q.grad is not None for block in model.blocks), 'baked C must train'


def test_baked_checkpoint_fits_a_direct_model(small, images):
    baked = masa_vit.bake(small(coefficients='mlp'))
    direct = small(coefficients='direct')
    direct.load_state_dict(baked.state_dict())
    assert torch.equal(direct(images), baked(images))


def test_bake_reaches_models_inside_wrappers(small, images):
    wrapper = nn.Sequential(small(coefficients='mlp'))
    expected = wrapper(images)
    masa_vit.bake(wrapper)
    assert wrapper[0].generator is None
    torch.testing.assert_close(wrapper(images), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize('name', ['vit_tiny_masa_s2', 'vit_tiny_patch16_224'])
def test_bake_leaves_other_models_alone(small, name):
    model = small(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    masa_vit.bake(model)
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_bake_keeps_the_mode_of_the_model(small):
    model = masa_vit.bake(small(coefficients='mlp').eval())
    assert not any(module.training for module in model.modules())
