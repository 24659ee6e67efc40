from __future__ import annotations

import re

import pytest
import safetensors.torch
import timm
import torch

import masa_vit
from masa_vit.models import load_exactly, load_weights, read_state_dict


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('prefix', ['', 'model.', 'module.backbone.'])
def test_load_weights_from_files(small, images, tmp_path, suffix, prefix):
    trained = small()
    state = {prefix + key: value for key, value in trained.state_dict().items()}
    path = tmp_path / f'weights{suffix}'
    if suffix == '.pth':
        torch.save({'state_dict': state, 'meta': {'epoch': 3}}, path)
    else:
        safetensors.torch.save_file(state, path)
    model = small()
    report = load_weights(model, path)
    assert torch.equal(model(images), trained(images))
    assert len(report.matched) == len(trained.state_dict())
    problems = report.missing + report.unexpected + report.resized + report.dropped
    assert not problems


def test_fine_tuning_at_another_size_with_other_classes(small, tmp_path):
    trained = small(num_classes=5)
    torch.save(trained.state_dict(), tmp_path / 'weights.pth')
    model = small(img_size=(48, 64), num_classes=3)
    report = load_weights(model, tmp_path / 'weights.pth')
    assert report.resized == ['pos_embed']
    assert report.dropped == ['head.weight', 'head.bias']
    assert 'dropped (2): head.weight, head.bias' in str(report)
    assert torch.equal(model.banks['q'].atoms, trained.banks['q'].atoms)
    assert model(torch.randn(1, 3, 48, 64)).shape == (1, 3)


def test_dense_models_too(small, images, tmp_path):
    trained = small('vit_tiny_patch16_224')
    safetensors.torch.save_file(trained.state_dict(), tmp_path / 'dense.safetensors')
    model = small('vit_tiny_patch16_224')
    load_weights(model, tmp_path / 'dense.safetensors')
    assert torch.equal(model(images), trained(images))


def test_ema_weights_first(small, images, tmp_path):
    raw, ema = small(), small()
    path = tmp_path / 'last.pth.tar'
    torch.save({'state_dict': raw.state_dict(), 'state_dict_ema': ema.state_dict()}, path)
    model = small()
    load_weights(model, path)
    assert torch.equal(model(images), ema(images))


def test_folded_checkpoint_is_a_dense_one(small, tmp_path):
    torch.save(masa_vit.fold(small()).state_dict(), tmp_path / 'folded.pth')
    with pytest.raises(ValueError, match='the checkpoint is dense'):
        load_weights(small(), tmp_path / 'folded.pth')
    load_weights(small('vit_tiny_patch16_224'), tmp_path / 'folded.pth')


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_truncated_file(small, tmp_path, suffix):
    path = tmp_path / f'weights{suffix}'
    state = small().state_dict()
    if suffix == '.pth':
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r'\(5,000 bytes\) cannot be read'):
        read_state_dict(path)


def test_any_other_file(small, tmp_path):
    (tmp_path / 'noise.pth').write_bytes(bytes(range(256)) * 20)
    with pytest.raises(ValueError, match='truncated or not a file of weights'):
        load_weights(small(), tmp_path / 'noise.pth')


def test_masa_checkpoint_into_a_dense_model(small, tmp_path):
    torch.save(small().state_dict(), tmp_path / 'masa.pth')
    with pytest.raises(ValueError, match=r'checkpoint of a MASA model .*num_atoms=2'):
        load_weights(small('vit_tiny_patch16_224'), tmp_path / 'masa.pth')


def test_the_arguments_of_a_masa_checkpoint_are_named(small, tmp_path):
    grouped = small(groups=[[0, 1], [2, 3]], residual_rank=6)
    torch.save({'model.' + k: v for k, v in grouped.state_dict().items()}, tmp_path / 'masa.pth')
    cure = "num_atoms=2, projections='qkvo', groups=[[0, 1], [2, 3]], residual_rank=6"
    for kwargs in ({}, {'residual_rank': 6}, {'groups': [[0, 1], [2, 3]]}):
        with pytest.raises(ValueError, match=re.escape(cure)):
            load_weights(small(**kwargs), tmp_path / 'masa.pth')
    with pytest.raises(ValueError, match=re.escape(cure)):
        load_weights(small('vit_tiny_patch16_224'), tmp_path / 'masa.pth')


def test_load_exactly(small, images, tmp_path):
    trained = small()
    torch.save(trained.state_dict(), tmp_path / 'a.pth')
    model = small()
    load_exactly(model, tmp_path / 'a.pth')
    assert torch.equal(model(images), trained(images))
    for kwargs, what in [
        ({'num_classes': 3}, r'dropped \(2\): head'),
        ({'img_size': 64}, r'resized \(1\): pos_embed'),
        ({'depth': 3}, r'unexpected \(\d+\): blocks\.3'),
        ({'residual_rank': 1}, r'missing \(32\): blocks\.0'),
    ]:
        with pytest.raises(ValueError, match=rf'does not match this MasaVision(.|\n)*{what}'):
            load_exactly(small(**kwargs), tmp_path / 'a.pth')
    with pytest.raises(FileNotFoundError, match=r"b\.pth' does not exist"):
        load_exactly(model, tmp_path / 'b.pth')
    with pytest.raises(FileNotFoundError, match="'vit_tiny_patch16_224' does not exist"):
        load_exactly(model, 'vit_tiny_patch16_224')  # a name, which load_weights would take


class Anything:
    """Not a weight."""


def test_pickled_objects_are_not_loaded(small, tmp_path):
    path = tmp_path / 'run.pth'
    torch.save({'state_dict': small().state_dict(), 'history': Anything()}, path)
    with pytest.raises(ValueError, match='contains objects other than tensors'):
        load_weights(small(), path)


@pytest.mark.parametrize('name', ['nowhere.pth', 'vit_tiny_masa_s2.pth', 'a/vit_tiny_masa_s2'])
def test_no_such_file(small, name):
    with pytest.raises(FileNotFoundError, match='does not exist'):
        load_weights(small(), name)


def test_a_folder(small, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'is a folder.*'):
        load_weights(small(), tmp_path)


def test_into_a_wrapper(small, images, tmp_path):
    trained, features = small(), small(features_only=True)
    torch.save(trained.state_dict(), tmp_path / 'weights.pth')
    report = load_weights(features, tmp_path / 'weights.pth')
    assert 'blocks.attn_banks.q.atoms' in report.matched
    expected = trained.forward_intermediates(images, indices=[3], intermediates_only=True)[0]
    assert torch.equal(features(images)[-1], expected)


def test_nothing_matches(small, tmp_path):
    torch.save({'conv1.weight': torch.ones(3)}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'no tensor of .* matches .* conv1\.weight'):
        load_weights(small(), tmp_path / 'other.pth')


def test_another_architecture(small, tmp_path):
    torch.save(small(embed_dim=64).state_dict(), tmp_path / 'wide.pth')
    with pytest.raises(ValueError, match=r'embed_dim=64 \(model: 32\)'):
        load_weights(small(), tmp_path / 'wide.pth')


def test_name_of_a_timm_model(small, monkeypatch):
    """There are no weights to download in a test: timm's answer is put in its place."""
    trained, model = small('vit_tiny_patch16_224'), small('vit_tiny_patch16_224')
    asked = []

    def create_model(name, pretrained):
        asked.append((name, pretrained))
        return trained

    monkeypatch.setattr(timm, 'create_model', create_model)
    load_weights(model, 'vit_tiny_patch16_224.augreg_in21k')
    assert asked == [('vit_tiny_patch16_224.augreg_in21k', True)]
    assert torch.equal(model.head.weight, trained.head.weight)


def test_into_a_model_without_class_token_and_head(small, tmp_path):
    """As backbones of detectors are: tokens go with their position embeddings."""
    trained = small(reg_tokens=2)
    torch.save({'a.b.' + k: v for k, v in trained.state_dict().items()}, tmp_path / 'weights.pth')
    model = small(class_token=False, global_pool='', num_classes=0, final_norm=False)
    report = load_weights(model, tmp_path / 'weights.pth', prefix='a.', ignore=('norm.',))
    assert torch.equal(model.pos_embed, trained.pos_embed[:, 3:])
    assert not report.missing
    assert not report.unexpected
    assert {'cls_token', 'reg_token', 'norm.weight', 'head.weight'} <= set(report.dropped)
    apart = small(reg_tokens=2, no_embed_class=True)
    torch.save(apart.state_dict(), tmp_path / 'weights.pth')
    model = small(class_token=False, global_pool='', num_classes=0, no_embed_class=True)
    load_weights(model, tmp_path / 'weights.pth')
    assert torch.equal(model.pos_embed, apart.pos_embed)


def test_a_state_dict_that_was_read_already(small):
    trained, model = small(), small()
    report = load_weights(model, 'https://example.org/x.pth', weights=trained.state_dict())
    assert report.source == 'https://example.org/x.pth'
    assert torch.equal(model.banks.q.atoms, trained.banks.q.atoms)


@pytest.mark.parametrize(
    ('ours', 'theirs', 'message'),
    [
        ({'in_chans': 1}, {}, r'in_chans=3 \(model: 1\)$'),
        ({}, {'in_chans': 1}, r'in_chans=1 \(model: 3\)$'),
        ({'no_embed_class': True}, {}, r'no_embed_class=False \(model: True\)$'),
        ({}, {'no_embed_class': True}, r'no_embed_class=True \(model: False\)$'),
        ({'reg_tokens': 4}, {}, r'reg_tokens=0 \(model: 4\)$'),
        ({}, {'reg_tokens': 4}, r'reg_tokens=4 \(model: 0\)$'),
        ({'embed_dim': 64}, {}, r'embed_dim=32 \(model: 64\)$'),
        ({'reg_tokens': 1, 'class_token': False, 'global_pool': 'avg'}, {}, 'class_token=True'),
    ],
)
def test_the_argument_that_differs_is_named(small, tmp_path, ours, theirs, message):
    for name in ('vit_tiny_masa_s2', 'vit_tiny_patch16_224'):
        torch.save(small(name, **theirs).state_dict(), tmp_path / 'theirs.pth')
        with pytest.raises(ValueError, match=message):
            load_weights(small(name, **ours), tmp_path / 'theirs.pth')


def test_integers_for_floating_point_parameters_are_refused(small, tmp_path):
    state = small().state_dict()
    for dtype, kind in ((torch.int32, 'int32'), (torch.complex64, 'complex64')):
        torch.save({**state, 'norm.weight': state['norm.weight'].to(dtype)}, tmp_path / 'a.pth')
        with pytest.raises(ValueError, match=rf'norm\.weight as torch\.{kind}.*expected floating'):
            load_weights(small(), tmp_path / 'a.pth')
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / 'a.pth')
    load_weights(small(), tmp_path / 'a.pth')
