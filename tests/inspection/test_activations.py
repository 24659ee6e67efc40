from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

import masa_vit
from masa_vit.inspection.activations import (
    attention_distance,
    attention_maps,
    class_attention,
    mean_distance,
    patch_distances,
    patch_grid,
)

MODELS = {
    'direct': {},
    'mlp': {'coefficients': 'mlp', 'projections': 'qkv', 'dictionaries': ['qv', 'k']},
    'groups': {'groups': [[0, 3], [1, 2]], 'num_atoms': [1, 2], 'residual_rank': 2},
    'qk_norm': {'qk_norm': True},
    'registers': {'reg_tokens': 3},
    'registers alone': {'reg_tokens': 2, 'class_token': False, 'global_pool': 'avg'},
    'no prefix': {'class_token': False, 'global_pool': 'avg'},
    'dropouts': {'attn_drop_rate': 0.5, 'drop_path_rate': 0.5, 'patch_drop_rate': 0.5},
    'scale_norm': {'scale_attn_norm': True},
    'dense': {'name': 'vit_tiny_patch16_224'},
}


@pytest.fixture(params=MODELS)
def model(small, request) -> nn.Module:
    return sharpen(small(**MODELS[request.param]))


def sharpen(model):
    """Let heads choose: at the start attention is nearly uniform."""
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith('.atoms') or 'qkv.weight' in name:
                param.mul_(12)
            elif '.up_' in name:
                nn.init.normal_(param, std=0.1)
    return model


def calls(model, images):
    """Input and output of each block's attention in an ordinary pass."""
    seen = []
    hooks = [
        block.attn.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
        for block in model.blocks
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize('fused', [True, False])
@torch.no_grad()
def test_maps_are_what_the_model_attends_with(model, images, fused):
    for block in model.blocks:
        block.attn.fused_attn = fused
    maps = attention_maps(model, images)
    tokens = model.num_prefix_tokens + 16
    assert maps.shape == (4, 2, 2, tokens, tokens)
    torch.testing.assert_close(maps.sum(-1), torch.ones(4, 2, 2, tokens))
    uniform = torch.full_like(maps, 1 / tokens)
    assert (maps - uniform).abs().max() > 0.1, 'uniform maps would show little'
    for block, attention, (x, out) in zip(
        model.blocks, maps, calls(model.eval(), images), strict=True
    ):
        attn = block.attn
        values = attn.qkv(x).chunk(3, dim=-1)[2].unflatten(-1, (2, 16)).transpose(1, 2)
        mixed = (attention @ values).transpose(1, 2).flatten(2)
        torch.testing.assert_close(attn.proj(attn.norm(mixed)), out, atol=2e-5, rtol=1e-4)


def test_a_folded_model_gives_the_same_maps(small, images):
    model = sharpen(small(residual_rank=2))
    maps = attention_maps(model, images)
    torch.testing.assert_close(attention_maps(masa_vit.fold(model), images), maps)


@pytest.mark.parametrize('training', [True, False])
def test_the_model_is_given_back_as_it_was(small, images, training):
    model = small().train(training)
    model.blocks[1].eval()  # a part that is frozen
    model.blocks[2].attn.fused_attn = False
    model.blocks[3].attn.fused_attn = True
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    attention_maps(model, images)
    attention_distance(model, [images])
    assert [module.training for module in model.modules()] == modes
    assert [model.blocks[i].attn.fused_attn for i in (2, 3)] == [False, True]
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_a_failing_pass_leaves_the_model_alone_too(small):
    model = small()
    model.blocks[0].attn.fused_attn = True
    with pytest.raises(AssertionError, match='height'):  # timm's, of the patch embedding
        attention_maps(model, torch.zeros(1, 3, 24, 24))
    assert model.training
    assert model.blocks[0].attn.fused_attn
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ('name', 'what'),
    [
        ('resnet18', 'no `blocks`'),
        ('vit_relpos_small_patch16_224', None),
        ('vit_dlittle_patch16_reg1_gap_256', 'DiffAttention'),
        ('mixer_s32_224', r'no `attn` with'),
    ],
)
def test_other_models(name, what):
    size = {} if name == 'resnet18' else {'img_size': 64}
    args = {'embed_dim': 32, 'depth': 2, 'num_heads': 2} if name.startswith('vit') else {}
    model = timm.create_model(name, num_classes=0, **size, **args)
    images = torch.randn(1, 3, 64, 64)
    if what is None:  # a bias on the scores is in the maps
        assert attention_maps(model, images).shape == (2, 1, 2, 16, 16)
        return
    with pytest.raises(TypeError, match=what) as error:
        attention_maps(model, images)
    assert 'VisionTransformer of timm' in str(error.value)
    with pytest.raises(TypeError, match=what):
        attention_distance(model, [images])


def test_a_module_that_holds_a_model(small, images):
    with pytest.raises(TypeError, match=r'Sequential is not built.*of a module that holds one'):
        attention_maps(nn.Sequential(small()), images)


def test_class_attention_takes_the_class_token():
    maps = torch.rand(3, 2, 4, 9, 9)
    cut = class_attention(maps, 3, (2, 3))
    assert cut.shape == (3, 2, 4, 2, 3)
    assert torch.equal(cut[1, 0, 2, 1, 0], maps[1, 0, 2, 0, 3 + 3])


@pytest.mark.parametrize(('prefix', 'has_class_token'), [(0, None), (3, False)])
def test_class_attention_without_class_token_is_the_mean_over_patches(prefix, has_class_token):
    maps = torch.rand(3, 2, 4, prefix + 6, prefix + 6)
    cut = class_attention(maps, prefix, (2, 3), has_class_token)
    torch.testing.assert_close(cut[2, 1, 3, 1, 2], maps[2, 1, 3, prefix:, -1].mean())


def test_class_attention_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match='9 tokens are not 1 prefix tokens and a grid of 2 x 3'):
        class_attention(torch.rand(1, 1, 1, 9, 9), 1, (2, 3))
    with pytest.raises(ValueError, match='there is none'):
        class_attention(torch.rand(1, 1, 1, 6, 6), 0, (2, 3), has_class_token=True)


def test_distances_of_known_attention():
    distances = patch_distances((2, 2), (8, 6))
    expected = torch.tensor([[0, 6, 8, 10], [6, 0, 10, 8], [8, 10, 0, 6], [10, 8, 6, 0.0]])
    assert torch.equal(distances, expected)
    assert mean_distance(torch.eye(4), distances) == 0
    assert mean_distance(torch.full((4, 4), 0.25), distances) == 6  # (0 + 6 + 8 + 10) / 4
    assert mean_distance(torch.full((4, 4), 0.01), distances) == pytest.approx(6)
    assert mean_distance(torch.eye(4)[[1, 0, 3, 2]], distances) == 6
    assert mean_distance(torch.zeros(4, 4), distances) == 0


@pytest.mark.parametrize('kwargs', [{}, {'reg_tokens': 3}, {'class_token': False}])
def test_distance_of_uniform_attention(small, images, kwargs):
    """Prefix tokens have no part in it."""
    model = small(global_pool='avg', **kwargs)
    with torch.no_grad():
        model.banks['q'].atoms.zero_()
    expected = patch_distances((4, 4), (8, 8)).mean()
    found = attention_distance(model, [images])
    torch.testing.assert_close(found, expected.expand(4, 2))


def test_distance_is_the_mean_over_images_of_all_batches(model):
    images = torch.randn(5, 3, 32, 32)
    found = attention_distance(model, iter([images[:3], (images[3:], torch.zeros(2))]))
    prefix = model.num_prefix_tokens
    maps = attention_maps(model, images)[..., prefix:, prefix:].double()
    maps = maps / maps.sum(-1, keepdim=True)
    distances = patch_distances((4, 4), (8, 8)).double()
    expected = torch.einsum('lbhqk,qk->lh', maps, distances) / (5 * 16)
    torch.testing.assert_close(found, expected.float())
    assert found.std() > 0.1


def test_distance_in_pixels_of_images_of_another_size(small):
    model = small(dynamic_img_size=True)
    with torch.no_grad():
        model.banks['q'].atoms.zero_()
    images = torch.randn(1, 3, 24, 48)
    assert patch_grid(model, images) == (3, 6)
    expected = patch_distances((3, 6), (8, 8)).mean()
    torch.testing.assert_close(attention_distance(model, [images]), expected.expand(4, 2))


def test_images_are_given_the_dtype_of_the_model(small, images):
    model = sharpen(small()).double()
    maps = attention_maps(model, images)
    assert maps.dtype == torch.float64
    torch.testing.assert_close(attention_maps(copy.deepcopy(model).float(), images), maps.float())


@pytest.mark.parametrize(
    ('batches', 'what'),
    [
        ([], 'the batches are empty'),
        (torch.zeros(2, 3, 32, 32), r'\(3, 32, 32\), expected \(B, 3, H, W\)'),
        ([('a', 'b')], 'images of str'),
    ],
)
def test_bad_batches(small, batches, what):
    with pytest.raises(ValueError, match=what):
        attention_distance(small(), batches)
