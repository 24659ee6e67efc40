from __future__ import annotations

import io
import subprocess
import sys

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import masa_vit

KINDS = [{}, {'coefficients': 'mlp'}, {'projections': 'qkv', 'reg_tokens': 1, 'qk_norm': True}]


@pytest.mark.parametrize('kwargs', KINDS)
def test_folded_model_is_timms_with_the_same_output(small, images, kwargs):
    model = small(**kwargs).eval()
    keys = list(model.state_dict())
    folded = masa_vit.fold(model)
    assert type(folded) is VisionTransformer
    assert torch.equal(folded(images), model(images)), 'difference must be 0'
    assert list(model.state_dict()) == keys, 'the input is left as it is'
    assert not folded.training

    timm_kwargs = {k: v for k, v in kwargs.items() if k in ('reg_tokens', 'qk_norm')}
    dense = small('vit_tiny_patch16_224', **timm_kwargs).eval()
    dense.load_state_dict(folded.state_dict())
    assert torch.equal(dense(images), folded(images))
    assert set(vars(folded)) == set(vars(dense))
    assert folded.pretrained_cfg['architecture'] == 'vit_tiny_patch16_224'
    assert folded.default_cfg == folded.pretrained_cfg
    assert model.pretrained_cfg['architecture'] == 'vit_tiny_masa_s2'


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'vit_base_patch32_clip_224'])
def test_timm_creates_the_folded_model_by_its_name_and_arguments(name, images):
    args = {'img_size': 32, 'patch_size': 8, 'embed_dim': 32, 'depth': 3, 'num_heads': 2}
    dense = timm.create_model(name, **args, num_classes=1000).eval()
    folded = masa_vit.fold(masa_vit.compress(dense, num_atoms=2))
    if not hasattr(folded, '_model_args'):
        pytest.skip('this version of timm records no arguments')
    again = timm.create_model(folded.pretrained_cfg['architecture'], **folded._model_args).eval()
    again.load_state_dict(folded.state_dict())
    assert [m.eps for m in again.modules() if hasattr(m, 'eps')] == [
        m.eps for m in dense.modules() if hasattr(m, 'eps')
    ]
    torch.testing.assert_close(again(images), folded(images), rtol=0, atol=1e-6)


def test_the_record_of_a_folded_model(small):
    model = small(norm_eps=1e-6)  # that of timm's norms
    model.reset_classifier(3)
    folded = masa_vit.fold(model)
    assert folded._model_args['num_classes'] == 3
    assert 'norm_layer' not in folded._model_args
    model.pretrained_cfg = {**model.pretrained_cfg, 'architecture': 'my_masa'}
    model._model_args = {'norm_eps': 1e-5}
    assert masa_vit.fold(model).pretrained_cfg['architecture'] == 'my_masa', 'not ours to change'


def test_fold_owns_its_weights(small, images):
    model = small()
    folded = masa_vit.fold(model)
    expected = folded(images)
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    assert torch.equal(folded(images), expected)


def test_fold_inside_a_wrapper(small, images):
    wrapper = nn.Sequential(small())
    folded = masa_vit.fold(wrapper)
    assert type(folded[0]) is VisionTransformer
    assert torch.equal(folded(images), wrapper(images))


def test_fold_of_a_pruned_model(small, images):
    model = small()
    model.prune_intermediate_layers([1])
    assert torch.equal(masa_vit.fold(model)(images), model(images))


def test_fold_refuses_what_it_would_lose(small):
    class WithExtras(masa_vit.MasaVisionTransformer):
        pass

    model = small()
    model.__class__ = WithExtras
    with pytest.raises(TypeError, match='WithExtras extends MasaVisionTransformer'):
        masa_vit.fold(model)


def test_nothing_to_fold(small):
    with pytest.raises(ValueError, match='nothing is shared'):
        masa_vit.fold(small('vit_tiny_patch16_224'))


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_folded_model_scripts_and_exports(small, images):
    folded = masa_vit.fold(small()).eval()
    torch.testing.assert_close(torch.jit.script(folded)(images), folded(images))
    program = torch.export.export(folded, (images,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(images), folded(images))


@pytest.mark.slow
def test_folded_model_is_created_from_its_folder_without_this_package(small, images, tmp_path):
    folded = masa_vit.fold(small()).eval()
    args = {'img_size': 32, 'patch_size': 8, 'embed_dim': 32, 'depth': 4, 'num_heads': 2}
    save_for_hf(folded, tmp_path / 'model', model_args=args, safe_serialization=True)
    torch.save((images, folded(images)), tmp_path / 'io.pt')
    code = (
        'import sys, timm, torch\n'
        f'model = timm.create_model("local-dir:{tmp_path}/model", pretrained=True).eval()\n'
        f'images, expected = torch.load(r"{tmp_path}/io.pt")\n'
        'assert torch.equal(model(images), expected)\n'
        'assert not any(name.startswith("masa_vit") for name in sys.modules)\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path)


def test_masa_model_is_created_from_its_folder(small, images, tmp_path):
    model = small(num_atoms=3).eval()
    args = {'img_size': 32, 'patch_size': 8, 'embed_dim': 32, 'depth': 4, 'num_heads': 2}
    save_for_hf(model, tmp_path / 'model', model_args={**args, 'num_atoms': 3})
    again = timm.create_model(f'local-dir:{tmp_path}/model', pretrained=True).eval()
    assert torch.equal(again(images), model(images))
