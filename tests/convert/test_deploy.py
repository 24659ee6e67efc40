from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import masa_vit
from masa_vit.convert import deploy, load_folded

DENSE = 'vit_tiny_patch16_224'
FROZEN = {'coefficients': 'frozen', 'coef': [[1, 0], [0.5, 2], [0, 1], [-1, 3]]}


@pytest.fixture
def save(tmp_path):
    def write(state_dict, name='model.safetensors'):
        path = tmp_path / name
        if name.endswith('.safetensors'):
            save_file(state_dict, path)
        else:
            torch.save({'epoch': 3, 'state_dict': state_dict}, path)
        return path

    return write


@pytest.mark.parametrize('name', ['model.safetensors', 'model.pth'])
@pytest.mark.parametrize(
    ('sharing', 'kwargs'),
    [
        ({}, {}),
        ({'coefficients': 'mlp'}, {}),
        (FROZEN, {'qkv_bias': False}),
        ({'projections': 'qv'}, {'qk_norm': True, 'reg_tokens': 1}),
        ({'projections': 'o', 'num_atoms': 3}, {'init_values': 0.1}),
        ({'dictionaries': ('qv', 'k', 'o')}, {'class_token': False, 'global_pool': 'avg'}),
    ],
)
def test_loads_what_fold_makes(small, images, save, name, sharing, kwargs):
    masa = small(**sharing, **kwargs).eval()
    model = small(DENSE, **kwargs).eval()
    parameters = [param.data_ptr() for param in model.parameters()]
    assert load_folded(model, save(masa.state_dict(), name)) is model
    assert type(model) is VisionTransformer
    assert [param.data_ptr() for param in model.parameters()] == parameters, 'in place'
    expected = masa_vit.fold(masa).state_dict()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6, msg=key)
    torch.testing.assert_close(model(images), masa(images), rtol=0, atol=1e-5)
    assert all(param.requires_grad for param in model.parameters())


@pytest.mark.parametrize('chunk', [1, 100, 1000])
def test_pieces_do_not_change_the_weights(small, save, chunk, monkeypatch):
    masa = small()
    monkeypatch.setattr(deploy, '_CHUNK', chunk)
    model = load_folded(small(DENSE), save(masa.state_dict()))
    expected = masa_vit.fold(masa).blocks[3].attn.qkv.weight
    torch.testing.assert_close(model.blocks[3].attn.qkv.weight, expected, rtol=0, atol=1e-6)


def test_values_get_the_dtype_of_the_model(small, save):
    masa = small()
    path = save({key: value.bfloat16() for key, value in masa.state_dict().items()})
    rounded = masa.bfloat16().float()
    expected = masa_vit.fold(rounded).blocks[1].attn.qkv.weight
    model = load_folded(small(DENSE), path)
    torch.testing.assert_close(model.blocks[1].attn.qkv.weight, expected, rtol=0, atol=1e-6)
    half = load_folded(small(DENSE).half(), path).blocks[1].attn.qkv.weight
    assert half.dtype == torch.float16
    torch.testing.assert_close(half, expected.half(), rtol=2e-3, atol=1e-6)


def test_a_compressed_model_goes_through_its_file(small, images, save):
    dense = small(DENSE).eval()
    masa = masa_vit.compress(dense, num_atoms=3)
    model = load_folded(small(DENSE).eval(), save(masa.state_dict()))
    torch.testing.assert_close(model(images), masa(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('norm.weight'), r'missing in the file \(1\): norm.weight$'),
        (lambda s: s.pop('banks.k.atoms'), r'missing .*blocks.0.attn.qkv.dense_k'),
        (lambda s: s.pop('blocks.2.coef.v'), r'missing in the file \(1\): blocks.2.coef.v$'),
        (lambda s: s.update(extra=torch.ones(1)), r'not in the model \(1\): extra$'),
        (
            lambda s: s.update({'blocks.4.coef.q': torch.ones(2)}),
            r'not in the model \(1\): blocks.4.coef.q$',
        ),
        (
            lambda s: s.update({'head.bias': torch.ones(7)}),
            r'of another shape \(1\): head.bias \(7,\) instead of \(5,\)$',
        ),
        (
            lambda s: s.update({'banks.o.atoms': torch.ones(2, 32, 8)}),
            r'banks.o.atoms \(2, 32, 8\) instead of \(2, 32, 32\)$',
        ),
        (
            lambda s: s.update({'blocks.1.coef.q': torch.ones(3)}),
            r'blocks.1.coef.q \(3,\) instead of \(2,\)$',
        ),
    ],
)
def test_refuses_a_file_that_does_not_fit_and_leaves_the_model(small, save, change, message):
    state_dict = small().state_dict()
    change(state_dict)
    model = small(DENSE)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match='does not fit this VisionTransformer') as error:
        load_folded(model, save(state_dict))
    error.match('(?m)' + message)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_refuses_the_mlp_without_its_weights(small, save):
    state_dict = small(coefficients='mlp').state_dict()
    del state_dict['generator.fc1.weight'], state_dict['blocks.3.coef.embedding']
    with pytest.raises(ValueError, match=r'blocks.3.coef.embedding, generator.fc1.weight'):
        load_folded(small(DENSE), save(state_dict))


@pytest.mark.parametrize('kwargs', [{'depth': 3}, {'depth': 5}, {'embed_dim': 48}])
def test_refuses_another_size(small, save, kwargs):
    with pytest.raises(ValueError, match='create it with the arguments of the MASA model'):
        load_folded(small(DENSE, **kwargs), save(small().state_dict()))


def test_refuses_other_models_and_files(small, save, tmp_path):
    path = save(small().state_dict())
    with pytest.raises(TypeError, match='fills a dense model, and this MasaVisionTransformer'):
        load_folded(small(), path)
    with pytest.raises(TypeError, match='got Sequential'):
        load_folded(nn.Sequential(small(DENSE)), path)
    with pytest.raises(ValueError, match='meta device'):
        load_folded(small(DENSE).to('meta'), path)
    with pytest.raises(ValueError, match=r'not the file of a MASA model.*attn.proj.*load_weights'):
        load_folded(small(DENSE), save(small(DENSE).state_dict(), 'dense.safetensors'))
    with pytest.raises(FileNotFoundError):
        load_folded(small(DENSE), tmp_path / 'none.pth')
