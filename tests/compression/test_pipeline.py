from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import masa_vit
from masa_vit.compression import compress


def make_alike(model: nn.Module) -> None:
    """Give the last layer the attention weights of the second, times two: three atoms are enough."""
    with torch.no_grad():
        for path in ('qkv', 'proj'):
            weight = getattr(model.blocks[1].attn, path).weight
            getattr(model.blocks[3].attn, path).weight.copy_(2 * weight)


def test_layers_that_have_enough_in_common_lose_nothing(dense, images, variant):
    model = dense(**variant)
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


def test_compressed_model_trains(dense, images):
    masa = compress(dense(), 2).train()
    assert masa.banks['q'].training
    assert masa.blocks[0].attn.coef.training
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
