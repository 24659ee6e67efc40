from __future__ import annotations

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import masa_vit
from masa_vit.compression import compress
from masa_vit.compression.building import without_residual

DENSE = 'vit_tiny_patch16_224'


@pytest.mark.parametrize('projections', ['qkvo', 'qv', 'o'])
def test_timm_creates_the_compressed_model_again(dense, images, variant, projections):
    model = dense(**variant)
    masa = compress(model, 2, projections)
    again = timm.create_model(masa.pretrained_cfg['architecture'], **masa._model_args).eval()
    assert list(again.state_dict()) == list(masa.state_dict())
    again.load_state_dict(masa.state_dict())
    assert torch.equal(again(images), masa(images))
    assert set(vars(again)) == set(vars(masa))
    assert masa.default_cfg == masa.pretrained_cfg
    assert [n for n, _ in masa.named_parameters()] == [n for n, _ in again.named_parameters()]
    dense_rows = dict(model.named_parameters())['blocks.1.attn.qkv.weight'].chunk(3)
    if projections == 'qv':
        assert torch.equal(masa.blocks[1].attn.qkv.dense_k, dense_rows[1])
        assert type(masa.blocks[1].attn.proj) is nn.Linear


def test_compressed_model_travels_by_its_folder(dense, images, tmp_path):
    masa = compress(dense(global_pool='avg', reg_tokens=1), 3)
    save_for_hf(masa, tmp_path / 'model', model_args=masa._model_args)
    again = timm.create_model(f'local-dir:{tmp_path}/model', pretrained=True).eval()
    assert torch.equal(again(images), masa(images))


@pytest.mark.parametrize(
    ('num_atoms', 'projections', 'name'),
    [
        (4, 'qkvo', 'vit_tiny_masa_s4'),
        (2, 'qkvo', 'vit_tiny_masa_s2'),
        (4, 'qkv', 'vit_tiny_masa_qkv_s4'),
    ],
)
def test_the_plain_architecture_gets_its_own_name(num_atoms, projections, name):
    model = timm.create_model(DENSE, img_size=32)
    masa = compress(model, num_atoms, projections)
    assert masa.pretrained_cfg['architecture'] == name
    assert masa._model_args == {'img_size': 32}
    assert model.pretrained_cfg['architecture'] == DENSE
    assert model.pretrained_cfg['hf_hub_id']
    assert not masa.pretrained_cfg['hf_hub_id'], 'the weights are not those of the Hub'
    assert masa_vit.fold(masa).pretrained_cfg['architecture'] == DENSE


@pytest.mark.parametrize(
    'name',
    [
        'vit_small_patch14_dinov2',
        'vit_base_patch32_clip_224',
        'vit_base_patch16_siglip_224',
        'vit_giant_patch14_dinov2',
        'deit3_small_patch16_224',
        'vit_so150m_patch16_reg4_map_256',
    ],
)
def test_other_architectures_are_described_by_arguments(name):
    small = {'img_size': 56, 'depth': 2, 'num_classes': 3}
    wide = {'embed_dim': 48, 'num_heads': 2}  # the MLP keeps the ratio of the architecture
    model = timm.create_model(name, **small, **wide)
    masa = compress(model, 1)
    again = timm.create_model(masa.pretrained_cfg['architecture'], **masa._model_args)
    shapes = {key: value.shape for key, value in masa.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes
    again.load_state_dict(masa.state_dict())
    images = torch.randn(1, 3, 56, 56)
    assert torch.equal(again.eval()(images), masa.eval()(images)), 'norms and activations'


def test_atoms_have_the_size_of_weights(dense):
    """An orthonormal atom of a wide model is smaller than a step of Adam."""
    for kwargs in ({}, {'residual_rank': 2}):
        masa = compress(dense(), 2, **kwargs)
        for name, bank in masa.banks.items():
            rows = torch.stack([getattr(block.attn.coef, name).detach() for block in masa.blocks])
            assert float(rows.square().sum(1).mean()) == pytest.approx(1)
            assert 0.2 < float(bank.atoms.std() / masa.blocks[0].attn.qkv.weight.std()) < 5


def test_models_without_a_record_of_timm():
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2)
    assert not hasattr(compress(model, 2), 'pretrained_cfg')


def test_refuses_other_models(dense, small):
    with pytest.raises(ValueError, match='shares its weights already: nothing to compress'):
        compress(small())
    with pytest.raises(TypeError, match=r'got Sequential\. For a wrapper, give the model inside'):
        compress(nn.Sequential(dense()))
    with pytest.raises(
        TypeError, match=r'VisionTransformer itself .* got VisionTransformerDistilled'
    ):
        compress(small('deit_tiny_distilled_patch16_224'))
    with pytest.raises(ValueError, match=r"block 0 \(ParallelThingsBlock\) has no 'attn.qkv'"):
        compress(small('vit_small_patch16_18x2_224'))


def test_refuses_blocks_of_unequal_shape(dense):
    model = dense()
    model.blocks[2].attn.proj = nn.Linear(16, 32)
    with pytest.raises(ValueError, match=r"projection 'o' is \(32, 16\) in block 2"):
        compress(model)


def test_without_residual_takes_the_residuals_alone_away(dense, images):
    """Whatever other parameters are called."""
    masa = compress(dense(), 2, residual_rank={'q': 2, 'o': 1})
    masa.head = nn.Sequential()
    masa.head.register_module('up_head', nn.Linear(32, 5))
    before = {name: value.clone() for name, value in masa.state_dict().items()}
    atoms = without_residual(masa)
    for block, given in zip(atoms.blocks, masa.blocks, strict=True):
        for layer, with_residual in (
            (block.attn.qkv, given.attn.qkv),
            (block.attn.proj, given.attn.proj),
        ):
            coef = with_residual.coef()
            composed = [bank(coef[name]) for name, bank in with_residual.banks.items()]
            assert torch.equal(layer.weight, torch.cat(composed))
    changed = [n for n, v in atoms.state_dict().items() if not torch.equal(v, before[n])]
    assert {name.rpartition('.')[2] for name in changed} == {'up_q', 'up_o'}
    assert all(torch.equal(value, before[name]) for name, value in masa.state_dict().items())
