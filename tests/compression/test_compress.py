from __future__ import annotations

import dataclasses
import inspect

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import masa_vit
from masa_vit.compression import CompressionOptions, compress, matrix_pca

DENSE = 'vit_tiny_patch16_224'
VARIANTS = [
    {},
    {'qk_norm': True, 'init_values': 1e-1, 'reg_tokens': 2, 'no_embed_class': True},
    {'qkv_bias': False, 'proj_bias': False, 'class_token': False, 'global_pool': 'avg'},
    {'dynamic_img_size': True, 'drop_path_rate': 0.1, 'pre_norm': True, 'global_pool': 'map'},
    {'num_classes': 0, 'scale_attn_norm': True, 'fix_init': True, 'act_layer': 'quick_gelu'},
]


@pytest.fixture
def dense(small):
    """Its biases and norms are not at their trivial start."""

    def create(**kwargs):
        model = small(DENSE, **kwargs).eval()
        with torch.no_grad():
            for param in model.parameters():
                param.add_(torch.randn_like(param), alpha=0.05)
        return model

    return create


@pytest.mark.parametrize('shape', [(6, 5), (300, 401)], ids=['one piece', 'several pieces'])
@pytest.mark.parametrize('num_atoms', [1, 3, 5])
def test_error_is_the_sum_of_the_discarded_eigenvalues(shape, num_atoms):
    weights = [torch.randn(shape) for _ in range(5)]
    atoms, coef, eigenvalues = matrix_pca(weights, num_atoms)
    stacked = torch.stack(weights).double()
    error = (stacked - torch.tensordot(coef, atoms.double(), 1)).square().sum()
    total = stacked.square().sum()
    torch.testing.assert_close(error, eigenvalues[num_atoms:].sum(), rtol=1e-6, atol=1e-12 * total)
    torch.testing.assert_close(eigenvalues.sum(), total)
    singular = torch.linalg.svdvals(stacked.flatten(1))
    torch.testing.assert_close(eigenvalues, singular.square())
    torch.testing.assert_close(
        coef, torch.einsum('lij,sij->ls', stacked, atoms.double()), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(_gram(atoms), torch.eye(num_atoms), rtol=0, atol=1e-6)


def _gram(atoms: torch.Tensor) -> torch.Tensor:
    return atoms.flatten(1) @ atoms.flatten(1).T


@pytest.mark.parametrize('rank', [0, 1, 2])
def test_alike_layers_leave_atoms_that_can_train(rank):
    directions = torch.randn(rank, 6, 5)
    weights = list(torch.tensordot(torch.randn(5, rank), directions, 1))
    state = torch.get_rng_state()
    atoms, coef, _ = matrix_pca(weights, 4)
    assert torch.equal(torch.get_rng_state(), state)
    composed = torch.tensordot(coef.float(), atoms, 1)
    torch.testing.assert_close(composed, torch.stack(weights), rtol=0, atol=1e-5)
    torch.testing.assert_close(_gram(atoms), torch.eye(4), rtol=0, atol=1e-6)
    assert (coef[:, rank:] == 0).all()


def make_alike(model: nn.Module) -> None:
    """Give the last layer the attention weights of the second, times two: three atoms are enough."""
    with torch.no_grad():
        for path in ('qkv', 'proj'):
            weight = getattr(model.blocks[1].attn, path).weight
            getattr(model.blocks[3].attn, path).weight.copy_(2 * weight)


@pytest.mark.parametrize('kwargs', VARIANTS)
def test_layers_that_have_enough_in_common_lose_nothing(dense, images, kwargs):
    model = dense(**kwargs)
    make_alike(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    masa = compress(model, num_atoms=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(masa) is masa_vit.MasaVisionTransformer
    torch.testing.assert_close(masa(images), model(images), rtol=1e-4, atol=1e-5)
    assert type(model) is VisionTransformer
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    folded = masa_vit.fold(masa)
    assert list(folded.state_dict()) == list(before)
    for key, value in folded.state_dict().items():
        if 'qkv.weight' in key or 'attn.proj.weight' in key:
            torch.testing.assert_close(value, before[key], rtol=0, atol=1e-6)
        else:
            assert torch.equal(value, before[key]), key


@pytest.mark.parametrize('kwargs', VARIANTS)
@pytest.mark.parametrize('projections', ['qkvo', 'qv', 'o'])
def test_timm_creates_the_compressed_model_again(dense, images, kwargs, projections):
    model = dense(**kwargs)
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
            rows = torch.stack([getattr(block.coef, name).detach() for block in masa.blocks])
            assert float(rows.square().sum(1).mean()) == pytest.approx(1)
            assert 0.2 < float(bank.atoms.std() / masa.blocks[0].attn.qkv.weight.std()) < 5


def test_compressed_model_trains(dense, images):
    masa = compress(dense(), 2).train()
    assert masa.banks['q'].training
    assert masa.blocks[0].coef.training
    masa(images).square().sum().backward()
    assert all(param.grad is not None for param in masa.parameters())


def test_mode_dtype_and_memory_are_the_models_own(dense):
    model = dense().to(torch.bfloat16)
    masa = compress(model, 2)
    assert {param.dtype for param in masa.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in masa.modules())
    expected = masa_vit.fold(compress(model.float(), 2)).blocks[2].attn.qkv.weight
    found = masa_vit.fold(masa).blocks[2].attn.qkv.weight.float()
    torch.testing.assert_close(found, expected, rtol=0.05, atol=5e-3)
    kept = {param.data_ptr() for param in model.parameters()}
    assert not kept & {param.data_ptr() for param in masa.parameters()}


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


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'num_atoms': 5}, r'num_atoms=5 for 4 layers saves nothing: .* at most 3'),
        ({'num_atoms': 4}, r'num_atoms=4 for 4 layers saves nothing'),
        (
            {'num_atoms': 2, 'groups': [[0, 1], [2, 3]]},
            r'num_atoms=2 for groups of at most 2 layers saves nothing: .* at most 1',
        ),
        ({'num_atoms': 0}, 'num_atoms must be an integer >= 1, got 0'),
        ({'num_atoms': 2.0}, 'num_atoms must be an integer >= 1, got 2.0'),
        ({'projections': 'qx'}, "projections='qx' is not valid"),
        ({'projections': ''}, "projections='' is not valid"),
    ],
)
def test_refuses_arguments_out_of_range(dense, kwargs, message):
    with pytest.raises(ValueError, match=message):
        compress(dense(), **kwargs)


def test_refuses_blocks_of_unequal_shape(dense):
    model = dense()
    model.blocks[2].attn.proj = nn.Linear(16, 32)
    with pytest.raises(ValueError, match=r"projection 'o' is \(32, 16\) in block 2"):
        compress(model)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_refuses_weights_that_are_not_finite(dense, value):
    model = dense()
    with torch.no_grad():
        model.blocks[1].attn.proj.weight[3, 4] = value
    with pytest.raises(ValueError, match=r"projection 'o'.* layers \[1\] are not finite"):
        compress(model, 2)
    compress(model, 2, 'qkv')


def test_a_projection_that_is_zero(dense, images):
    model = dense()
    nn.init.zeros_(model.blocks[2].attn.proj.weight)
    many = torch.randn(8, 3, 32, 32)
    for weighting in ('none', 'input', 'fisher'):
        masa = compress(model, 2, weighting=weighting, calibration=many, residual_rank=1)
        assert torch.isfinite(masa(images)).all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_takes_images_of_any_dtype(dense, dtype):
    many = torch.randn(8, 3, 32, 32)
    model = dense().to(dtype)
    masa = compress(model, 2, weighting='fisher', groups='kl', num_groups=2, calibration=many)
    assert {param.dtype for param in masa.parameters()} == {dtype}


def test_calibration_takes_batches_with_classes_and_only_where_it_is_needed(dense):
    model, many = dense(), torch.randn(8, 3, 32, 32)
    pairs = [(many[:4], torch.zeros(4)), (many[4:], torch.zeros(4))]
    found = compress(model, 2, weighting='input', calibration=pairs).banks['q'].atoms
    expected = compress(model, 2, weighting='input', calibration=many).banks['q'].atoms
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    compress(model, 2, calibration=[torch.randn(1, 3, 32, 32)])  # too few, and not needed


def test_a_number_of_atoms_for_each_group(dense):
    masa = compress(dense(), [1, 2], groups=[[0], [1, 2, 3]])
    assert {name: bank.num_atoms for name, bank in masa.banks.items()}['q_1to3'] == 2
    assert masa.banks['q_0'].num_atoms == 1


def test_the_options_are_the_arguments_with_their_defaults():
    parameters = inspect.signature(compress).parameters
    fields = {field.name: field.default for field in dataclasses.fields(CompressionOptions)}
    assert fields == {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in ('model', 'calibration')
    }


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'num_atoms': [1, 2]}, 'has 2 numbers, and there are 1 groups'),
        ({'num_atoms': 1, 'groups': [[0], [1], [2], [3]]}, 'saves nothing: take fewer groups'),
        ({'groups': 'kll'}, "groups='kll' is unknown"),
        ({'num_groups': 2}, 'num_groups=2 is for groups that are to be found'),
        ({'num_atoms': 2, 'sweeps': 2}, 'there is no residual'),
        ({'num_atoms': 2, 'residual_rank': 12}, 'which have 16,384: nothing is saved'),
        ({'num_atoms': 2, 'residual_rank': 2.5}, r'integers from 0 to 32'),
        ({'num_atoms': 'auto', 'budget': float('inf')}, 'budget=inf is not valid'),
        ({'num_atoms': 'auto', 'budget': 33}, r'from 1 on, the parameters of the whole model'),
        (
            {'num_atoms': 'auto', 'budget': 0.4, 'projections': 'qv'},
            r'those that do not share keep 8,192',
        ),
        (
            {'num_atoms': 2, 'weighting': 'input', 'calibration': torch.randn(8, 3, 48, 48)},
            r'images are \(3, 48, 48\), expected \(3, 32, 32\)',
        ),
        (
            {'num_atoms': 2, 'weighting': 'input', 'calibration': torch.randn(8, 1, 32, 32)},
            r'images are \(1, 32, 32\), expected \(3, 32, 32\)',
        ),
    ],
)
def test_refuses_what_does_not_go_together(dense, kwargs, message):
    with pytest.raises(ValueError, match=message):
        compress(dense(), **kwargs)
