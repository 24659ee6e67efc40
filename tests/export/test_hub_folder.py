from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

import masa_vit
from masa_vit.export import (
    ExportError,
    export_folded,
    export_hub,
    hub_folder,
)
from masa_vit.models.sources import load_source

FROZEN = {'coefficients': 'frozen', 'coef': torch.tensor([[1, 0], [0.5, 2], [0, 1], [-1, 3]])}


def load(path):
    return timm.create_model(f'local-dir:{path}', pretrained=True).eval()


def rounded(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.bfloat16())
    return model


@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
def test_folded(small, images, tmp_path, dtype):
    model = small(coefficients='mlp', drop_path_rate=0.1).eval()
    exported = export_folded(model, tmp_path / 'out', dtype=dtype)
    loaded = load(tmp_path / 'out')
    assert type(loaded) is VisionTransformer
    expected = masa_vit.fold(model)
    if dtype == 'bf16':
        expected = rounded(expected)
    torch.testing.assert_close(loaded(images), expected(images), rtol=0, atol=1e-6)
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['architecture'] == 'vit_tiny_patch16_224'
    assert 'num_atoms' not in config['model_args']
    assert str(tmp_path) not in json.dumps(config)
    weights = (tmp_path / 'out' / 'model.safetensors').stat().st_size
    assert exported.size == weights + (tmp_path / 'out' / 'config.json').stat().st_size
    assert exported.path == tmp_path / 'out'
    assert exported.difference < 1e-6
    assert (exported.rounding > 0) == (dtype == 'bf16')


@pytest.mark.parametrize(
    'kwargs',
    [
        {'num_atoms': 3, 'projections': 'qv', 'qk_norm': True},
        {'coefficients': 'mlp', 'coef_hidden_dim': 8},
        {**FROZEN, 'in_chans': 1},
        {'num_atoms': 1, 'groups': [[0, 2], [1, 3]], 'residual_rank': {'q': 2, 'o': [1, 0, 0, 3]}},
    ],
)
def test_hub(small, tmp_path, kwargs):
    model = small(**kwargs).eval()
    export_hub(model, tmp_path / 'out')
    loaded = load(tmp_path / 'out')
    assert type(loaded) is masa_vit.MasaVisionTransformer
    images = torch.randn(2, kwargs.get('in_chans', 3), 32, 32)
    torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=1e-6)
    args = json.loads((tmp_path / 'out' / 'config.json').read_text())['model_args']
    assert args['num_atoms'] == kwargs.get('num_atoms', 2)
    assert args['projections'] == kwargs.get('projections', 'qkvo')


def test_the_small_form_and_both_ways_to_load_it(small, images, tmp_path):
    model = small(coefficients='mlp').eval()
    full = export_hub(model, tmp_path / 'full')
    least = export_hub(model, tmp_path / 'least', bake=True, dtype='bf16')
    assert least.size < 0.6 * full.size
    state = load_file(tmp_path / 'least' / 'model.safetensors')
    assert not any('generator' in key or 'embedding' in key for key in state)
    assert not any(key.endswith('attn.qkv.weight') for key in state)
    assert state['blocks.attn_banks.q.atoms'].dtype == torch.bfloat16
    assert state['blocks.0.attn.coef.q'].dtype == torch.float32

    shared, fast = load(tmp_path / 'least'), masa_vit.load_folded(tmp_path / 'least').eval()
    assert type(shared) is masa_vit.MasaVisionTransformer
    assert type(fast) is VisionTransformer
    expected = rounded(masa_vit.bake(model))(images)
    torch.testing.assert_close(shared(images), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(fast(images), expected, rtol=0, atol=1e-5)
    assert fast.pretrained_cfg['architecture'] == 'vit_tiny_patch16_224'
    assert tuple(fast.pretrained_cfg['input_size']) == (3, 32, 32)


def test_a_compressed_model_goes_to_the_hub_and_back(small, images, tmp_path):
    dense = small('vit_tiny_patch16_224', reg_tokens=1).eval()
    masa = masa_vit.compress(dense, num_atoms=3).eval()
    export_hub(masa, tmp_path / 'hub')
    again = load_source(str(tmp_path / 'hub')).eval()
    torch.testing.assert_close(again(images), masa(images), rtol=0, atol=1e-6)
    export_folded(again, tmp_path / 'folded')
    torch.testing.assert_close(load(tmp_path / 'folded')(images), masa(images), rtol=0, atol=1e-5)


def test_a_dense_model(small, images, tmp_path):
    dense = small('vit_tiny_patch16_224').eval()
    export_folded(dense, tmp_path / 'out')
    torch.testing.assert_close(load(tmp_path / 'out')(images), dense(images), rtol=0, atol=0)
    with pytest.raises(ValueError, match='nothing is shared'):
        export_hub(dense, tmp_path / 'hub')
    with pytest.raises(ValueError, match='is a VisionTransformer, expected a MASA model'):
        masa_vit.load_folded(tmp_path / 'out')
    with pytest.raises(FileNotFoundError, match='does not exist'):
        masa_vit.load_folded(tmp_path / 'hub')
    assert not (tmp_path / 'hub').exists()


def test_a_changed_head_is_exported_as_it_is_now(small, images, tmp_path):
    model = small().eval()
    model.reset_classifier(7)
    export_hub(model, tmp_path)
    torch.testing.assert_close(load(tmp_path)(images), model(images), rtol=0, atol=1e-6)


def test_timm_that_does_not_record_arguments(small, images, tmp_path, args):
    model = small().eval()
    del model._model_args
    with pytest.raises(ExportError, match='give them: model_args'):
        export_folded(model, tmp_path)
    assert list(tmp_path.iterdir()) == []
    export_folded(model, tmp_path, model_args=args)
    torch.testing.assert_close(load(tmp_path)(images), model(images), rtol=0, atol=1e-6)
    folded = masa_vit.fold(model)
    export_folded(folded, tmp_path, model_args={**args, 'num_atoms': 2}, force=True)
    torch.testing.assert_close(load(tmp_path)(images), model(images), rtol=0, atol=1e-6)


def test_norms_of_another_epsilon(small, images, tmp_path):
    """timm takes them as a class, which JSON cannot hold; it has a name for those of CLIP."""
    masa = masa_vit.compress(small('vit_base_patch16_clip_224', mlp_ratio=4).eval(), num_atoms=2)
    export_hub(masa, tmp_path / 'hub')
    again = load(tmp_path / 'hub')
    assert again.norm.eps == 1e-5
    torch.testing.assert_close(again(images), masa(images), rtol=0, atol=0)
    folded = masa_vit.load_folded(tmp_path / 'hub').eval()
    torch.testing.assert_close(folded(images), masa(images), rtol=0, atol=1e-6)
    export_folded(masa, tmp_path / 'folded')
    folded = load(tmp_path / 'folded')
    assert folded.norm.eps == 1e-5
    assert type(folded) is VisionTransformer
    torch.testing.assert_close(folded(images), masa(images), rtol=0, atol=1e-6)

    other = small(norm_eps=1e-4).eval()
    with pytest.raises(ValueError, match=r'norm_layer=.* config\.json cannot hold'):
        export_folded(other, tmp_path / 'other')
    assert not (tmp_path / 'other').exists()


def test_classes_among_the_arguments_are_refused(small, tmp_path, contents):
    masa = masa_vit.compress(small('vit_giant_patch14_dinov2', mlp_ratio=4), num_atoms=2)
    for export in (export_hub, export_folded):
        with pytest.raises(ValueError, match=r'mlp_layer=.* config\.json cannot hold'):
            export(masa, tmp_path / 'out')
    assert contents(tmp_path) == {}


def test_a_model_without_a_name_is_refused(tmp_path):
    model = masa_vit.MasaVisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_atoms=1
    )
    with pytest.raises(ValueError, match=r'create it by timm\.create_model'):
        export_hub(model, tmp_path)


@pytest.mark.parametrize('export', [export_folded, export_hub])
def test_wrong_files_are_not_left(small, tmp_path, contents, wrong_weights, export):
    export(small(), tmp_path / 'good')
    good = contents(tmp_path)
    wrong_weights()
    for name, force in (('good', True), ('new', False)):
        with pytest.raises(ExportError, match='the files that were written differ'):
            export(small(), tmp_path / name, force=force)
    assert contents(tmp_path) == good
    with pytest.raises(FileExistsError, match='--force'):
        export(small(), tmp_path / 'good')


def test_files_that_load_as_another_kind_of_model_are_not_left(small, tmp_path, monkeypatch):
    right = hub_folder.save_for_hf

    def save(model, path, **kwargs):
        folded = masa_vit.fold(model)
        right(folded, path, model_args=folded._model_args, safe_serialization=True)

    monkeypatch.setattr(hub_folder, 'save_for_hf', save)
    with pytest.raises(ExportError, match='loads a VisionTransformer, not a MasaVisionTransformer'):
        export_hub(small(), tmp_path)
    assert list(tmp_path.iterdir()) == []
