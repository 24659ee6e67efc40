from __future__ import annotations

import re
import warnings

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

import masa_vit
from masa_vit.layers import SharedLinear

NAMES = [
    f'vit_{size}_masa_{sharing}'
    for size in ('tiny', 'small', 'base', 'large')
    for sharing in ('s2', 's4', 's6', 's8', 'qkv_s4')
]
SHORT = {name: re.sub(r'^vit_(\w)[a-z]+', r'vit_\1', name) for name in NAMES}


@pytest.mark.parametrize('name', NAMES)
def test_every_name_and_its_short_form_is_the_model_that_it_says(name):
    assert timm.is_model(name)
    assert timm.is_model(SHORT[name])
    with warnings.catch_warnings(), torch.device('meta'):
        warnings.simplefilter('error')
        model, short = timm.create_model(name), timm.create_model(SHORT[name])
        dense = timm.create_model(masa_vit.models.dense_architecture(name))
    assert [(k, v.shape) for k, v in model.state_dict().items()] == [
        (k, v.shape) for k, v in short.state_dict().items()
    ]
    assert model.pretrained_cfg['architecture'] == name == short.pretrained_cfg['architecture']
    depth, dim = len(dense.blocks), dense.embed_dim
    shared = 3 if 'qkv' in name else 4
    num_atoms = int(name[-1])
    saved = shared * (depth - num_atoms) * dim * dim - shared * depth * num_atoms
    count = [sum(p.numel() for p in m.parameters()) for m in (model, dense)]
    assert count[0] == count[1] - saved


def test_parameters_of_vit_base_as_in_the_paper():
    """ViT-B, S=4 over L=12: attention -66.7 %, whole model -21.8 %."""
    with torch.device('meta'):
        baked = masa_vit.bake(timm.create_model('vit_base_masa_s4', coefficients='mlp'))
    assert sum(p.numel() for p in baked.parameters()) == 67_693_480


def test_arguments_of_timm_and_ours_together(small):
    model = small(
        num_atoms=3,
        projections='qkv',
        dictionaries=['qk', 'v'],
        reg_tokens=2,
        qk_norm=True,
        dynamic_img_size=True,
        drop_path_rate=0.1,
        mlp_ratio=1.0,
        global_pool='avg',
        in_chans=1,
    )
    assert {name: bank.num_atoms for name, bank in model.banks.items()} == {'qk': 3, 'v': 3}
    assert isinstance(model.blocks[0].attn.proj, nn.Linear)
    assert model(torch.randn(1, 1, 48, 32)).shape == (1, 5)
    model.set_input_size(img_size=64)
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 5)


def test_the_papers_small_models_are_one_call_away():
    args = {'img_size': 32, 'patch_size': 4, 'num_classes': 100, 'mlp_ratio': 1.0}
    with torch.device('meta'):
        for dim, depth in ((64, 12), (256, 12), (256, 24)):
            model = timm.create_model(
                'vit_tiny_masa_s4', embed_dim=dim, depth=depth, num_heads=4, **args
            )
            assert model(torch.randn(1, 3, 32, 32)).shape == (1, 100)


def block_statistics(model: nn.Module, seed: int) -> torch.Tensor:
    """RMS of the output of every block, and of its gradient: (2, L)."""
    outputs: list[torch.Tensor] = []

    def keep(_module, _args, output):
        output.retain_grad()
        outputs.append(output)

    for block in model.blocks:
        block.register_forward_hook(keep)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(16, 3, 32, 32, generator=generator)
    targets = torch.randint(0, 5, (16,), generator=generator)
    nn.functional.cross_entropy(model(images), targets).backward()
    gradients = [output.grad for output in outputs]
    return torch.stack(
        [
            torch.stack([t.detach().square().mean().sqrt() for t in tensors])
            for tensors in (outputs, gradients)
        ]
    )


@pytest.mark.parametrize('kwargs', [{}, {'coefficients': 'mlp'}, {'dictionaries': ['qkv', 'o']}])
def test_init_behaves_as_the_dense_models_does(small, kwargs):
    """Outputs of the blocks within 3 %, gradients within 10 %, over depth, mean of five seeds."""
    shape = {'embed_dim': 64, 'depth': 12, 'num_heads': 4}
    ratios = []
    for seed in range(5):
        torch.manual_seed(seed)
        dense = small('vit_tiny_patch16_224', **shape)
        model = small('vit_tiny_masa_s4', **shape, **kwargs)
        model.load_state_dict(  # all else equal
            {
                k: v
                for k, v in dense.state_dict().items()
                if not k.endswith(('attn.qkv.weight', 'attn.proj.weight'))
            },
            strict=False,
        )
        ratios.append(block_statistics(model, seed) / block_statistics(dense, seed))
    output, gradient = torch.stack(ratios).mean(0)
    assert (output - 1).abs().max() < 0.03, output
    assert (gradient - 1).abs().max() < 0.10, gradient


@pytest.mark.parametrize('weight_init', ['', 'jax', 'moco', 'reset'])
@pytest.mark.parametrize('kwargs', [{}, {'coefficients': 'mlp'}, {'projections': 'qkv'}])
def test_variance_of_the_composed_weights_is_the_dense_models(small, kwargs, weight_init):
    shape = {'embed_dim': 96, 'depth': 12, 'num_heads': 4, 'weight_init': weight_init}
    dense = small('vit_tiny_patch16_224', **shape).blocks[0]
    for block in small('vit_tiny_masa_s4', **shape, **kwargs).blocks:
        for path in ('attn.qkv', 'attn.proj'):
            std = block.get_submodule(path).weight.std().item()
            assert std == pytest.approx(dense.get_submodule(path).weight.std().item(), rel=0.03)


def test_init_weights_again_keeps_the_generator_alive(small):
    model = small(coefficients='mlp')
    model.init_weights()
    for row in model.blocks[2].attn.coef.values().values():
        assert row.norm().item() == pytest.approx(1.0, abs=1e-3)


def test_biases_start_at_zero_and_belong_to_the_layer(small):
    model = small()
    biases = [block.attn.qkv.bias for block in model.blocks]
    assert all(not bias.any() for bias in biases)
    assert len({id(bias) for bias in biases}) == 4


def test_fix_init_scales_the_output_projections_by_depth(small):
    torch.manual_seed(1)
    dense = small('vit_tiny_patch16_224', embed_dim=96, fix_init=True)
    model = small('vit_tiny_masa_s2', embed_dim=96, fix_init=True)
    for a, b in zip(dense.blocks, model.blocks, strict=True):
        assert b.attn.proj.weight.std().item() == pytest.approx(
            a.attn.proj.weight.std().item(), rel=0.05
        )
        assert b.mlp.fc2.weight.std().item() == pytest.approx(
            a.mlp.fc2.weight.std().item(), rel=0.05
        )


@pytest.mark.parametrize('coefficients', ['direct', 'mlp'])
def test_parameter_groups(small, coefficients):
    """Atoms (and generator) with the middle block, coefficients with theirs, decay on atoms only."""
    model = small(coefficients=coefficients)
    layer_of = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layer_of) == {name for name, _ in model.named_parameters()}
    for name, layer in layer_of.items():
        if 'attn_banks' in name or 'attn_generator' in name:
            assert layer == layer_of['blocks.2.norm1.weight'], name
        if '.coef.' in name:
            assert layer == layer_of[re.sub(r'attn\.coef\..*', 'norm1.weight', name)], name
    assert layer_of['head.weight'] > layer_of['blocks.3.norm1.weight']

    no_decay = model.no_weight_decay()
    assert {n for n in layer_of if '.coef.' in n or '_generator' in n} <= no_decay
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=no_decay)
    decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    for name, param in model.named_parameters():
        expected = 0.05 if param.ndim > 1 and name not in no_decay else 0.0
        assert decay[id(param)] == expected, name
    assert decay[id(model.banks['q'].atoms)] == 0.05
    groups = param_groups_layer_decay(model, 0.05, no_decay, layer_decay=0.5)
    scale = {id(p): group['lr_scale'] for group in groups for p in group['params']}
    assert scale[id(model.banks['o'].atoms)] == scale[id(model.blocks[2].mlp.fc1.weight)]


def test_half_precision_from_the_start(small):
    for kwargs in ({}, {'coefficients': 'mlp'}):
        model = small(dtype=torch.bfloat16, **kwargs)
        assert model(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_frozen_coefficients_survive_the_meta_device(small):
    given = torch.eye(2)[[0, 1, 1, 0]].tolist()
    with torch.device('meta'):
        model = small(coefficients='frozen', coef=given)
    model.to_empty(device='cpu')
    model.init_weights()
    assert [block.attn.coef.q.tolist() for block in model.blocks] == given


def test_common_dictionary_is_the_same_in_any_order(small):
    assert list(small(dictionaries=['vq', 'k', 'o']).banks) == ['qv', 'k', 'o']


def test_no_pretrained_weights_is_a_clear_error(small, caplog):
    with pytest.raises(RuntimeError, match=r'[Nn]o pretrained weights'):
        small(pretrained=True)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'num_atoms': 5}, r'num_atoms=5 is larger than the number of layers, 4'),
        ({'num_atoms': 0}, r'needs a residual_rank of at least 1'),
        ({'projections': 'qkx'}, r"projections='qkx' is not valid, expected different letters"),
        ({'projections': ''}, r"projections='' shares nothing"),
        ({'dictionaries': ['qk', 'v']}, r"names each shared projection \('qkvo'\) once"),
        ({'dictionaries': 'qkvo'}, r"dictionaries='qkvo' is not valid, expected a list"),
        ({'coefficients': 'softmax'}, r"coefficients='softmax' is unknown"),
        (
            {'coefficients': 'frozen', 'coef': [[1.0, 0.0]] * 4, 'fix_init': True},
            r'fix_init=True scales the output projections',
        ),
        ({'coefficients': 'frozen', 'coef': [[1.0, 0.0]]}, r'has shape \(1, 2\), expected'),
    ],
)
def test_wrong_arguments(small, kwargs, message):
    with pytest.raises(ValueError, match=message):
        small(**kwargs)


def test_unequal_shapes_cannot_draw_on_one_dictionary(small):
    from functools import partial

    from timm.layers import Attention
    from timm.models.vision_transformer import Block

    class WideAttention(Attention):
        def __init__(self, dim, **kwargs):
            super().__init__(dim, attn_head_dim=24, **kwargs)

    block = partial(Block, attn_layer=WideAttention)

    def wide(**kwargs):
        kwargs.pop('attn_layer')
        return block(**kwargs)

    model = small(block_fn=wide)  # each projection its own dictionary: fine
    assert model.banks['q'].atoms.shape[1:] == (48, 32)
    assert model.banks['o'].atoms.shape[1:] == (32, 48)
    with pytest.raises(ValueError, match='unequal shapes'):
        small(block_fn=wide, dictionaries=['qkvo'])


def test_blocks_without_the_projections(small):
    from timm.models.vision_transformer import ParallelScalingBlock

    with pytest.raises(ValueError, match=r'ParallelScalingBlock\) has no'):
        small(block_fn=ParallelScalingBlock)


def test_all_shared_layers_are_shared(small):
    model = small()
    assert sum(isinstance(m, SharedLinear) for m in model.modules()) == 8
