"""Initial weights of the backbone, from every source that `init_cfg` may name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny_backbone import ARGS, NAMES, build

import masa_vit
from masa_vit.detection import MasaViT
from masa_vit.export.hub_folder import export_hub


def pretrained(checkpoint: Path | str, **kwargs: Any) -> dict[str, Any]:
    return dict(type='Pretrained', checkpoint=str(checkpoint), **kwargs)


def dense_args(**kwargs: Any) -> dict[str, Any]:
    return {**ARGS, 'img_size': 32, 'num_classes': 5, **kwargs}


@pytest.mark.parametrize('name', NAMES)
def test_init_from_a_classifiers_checkpoint(
    name: str, tmp_path: Path, logged: list[tuple[str, int]]
) -> None:
    """Another image size, a class token and a head, in the file of a training run."""
    model = timm.create_model(name, **dense_args(reg_tokens=2))
    path = tmp_path / 'epoch_1.pth'
    torch.save({'state_dict': {f'model.{k}': v for k, v in model.state_dict().items()}}, path)
    backbone = build(name, init_cfg=pretrained(path))
    backbone.init_weights()
    ours, theirs = backbone.vit.state_dict(), model.state_dict()
    for key in set(ours) - {'pos_embed'}:
        torch.testing.assert_close(ours[key], theirs[key])
    expected = timm.layers.resample_abs_pos_embed(
        theirs['pos_embed'][:, 3:], [8, 8], num_prefix_tokens=0
    )
    torch.testing.assert_close(ours['pos_embed'], expected)
    text, level = logged[-1]
    assert level == logging.INFO
    assert 'epoch_1.pth' in text
    assert 'cls_token' in text.split('dropped')[1]


def test_init_from_a_folded_file_into_the_dense_baseline(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    masa = timm.create_model('vit_tiny_masa_s2', **dense_args())
    dense = masa_vit.fold(masa)
    save_file(dense.state_dict(), tmp_path / 'folded.safetensors')
    backbone = build('vit_tiny_patch16_224', init_cfg=pretrained(tmp_path / 'folded.safetensors'))
    backbone.init_weights()
    torch.testing.assert_close(
        backbone.vit.blocks[2].attn.qkv.weight, masa.blocks[2].attn.qkv.weight
    )


def test_init_from_a_compressed_model(tmp_path: Path) -> None:
    """Its architecture and its weights come from the folder that `masa-vit compress` wrote."""
    torch.manual_seed(0)
    dense = timm.create_model('vit_tiny_patch16_224', **dense_args())
    compressed = masa_vit.compress(dense, num_atoms=2, residual_rank=3)
    export_hub(compressed, tmp_path / 'compressed')
    backbone = MasaViT(
        model_name=f'local-dir:{tmp_path / "compressed"}',
        model_args=dict(img_size=128),
        window_size=0,
        init_cfg=pretrained(tmp_path / 'compressed'),
    )
    backbone.init_weights()
    for block, other in zip(backbone.vit.blocks, compressed.blocks, strict=True):
        torch.testing.assert_close(block.attn.qkv.weight, other.attn.qkv.weight)
        assert block.attn.qkv.ranks == dict.fromkeys('qkv', 3)
    with pytest.raises(FileNotFoundError, match=r'no config\.json in the folder'):
        MasaViT(model_name='local-dir:nowhere')


@pytest.mark.parametrize('prefix', ['backbone.', None])
def test_init_from_a_detector(
    tmp_path: Path, prefix: str | None, logged: list[tuple[str, int]]
) -> None:
    other = build()
    state_dict = {f'backbone.{k}': v + 1 for k, v in other.state_dict().items()}
    state_dict['neck.levels.0.weight'] = torch.ones(2)
    torch.save({'state_dict': state_dict}, tmp_path / 'detector.pth')
    backbone = build(init_cfg=pretrained(tmp_path / 'detector.pth', prefix=prefix))
    backbone.init_weights()
    for key, value in backbone.state_dict().items():
        torch.testing.assert_close(value, state_dict[f'backbone.{key}'])


def test_init_from_a_timm_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model('vit_tiny_patch16_224', **dense_args())
    create = timm.create_model
    monkeypatch.setattr(
        'masa_vit.models.loading.timm.create_model',
        lambda name, pretrained=False, **kw: model if pretrained else create(name, **kw),
    )
    backbone = build('vit_tiny_patch16_224', init_cfg=pretrained('vit_tiny_patch16_224.augreg'))
    backbone.init_weights()
    torch.testing.assert_close(
        backbone.vit.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight
    )


@pytest.mark.parametrize('key', ['state_dict', 'model', None])
def test_init_from_a_url(monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    state_dict = {k: v + 1 for k, v in build().vit.state_dict().items()}
    monkeypatch.setattr(
        'masa_vit.detection.backbone.CheckpointLoader.load_checkpoint',
        lambda url, map_location: {key: state_dict} if key else state_dict,
    )
    backbone = build(init_cfg=pretrained('https://example.org/weights.pth'))
    backbone.init_weights()
    torch.testing.assert_close(backbone.vit.banks.q.atoms, state_dict['blocks.attn_banks.q.atoms'])


def test_what_does_not_match_is_told(tmp_path: Path, logged: list[tuple[str, int]]) -> None:
    model = timm.create_model('vit_tiny_masa_s2', **dense_args())
    state_dict = dict(model.state_dict())
    del state_dict['blocks.0.norm1.weight']
    state_dict['blocks.0.surprise'] = torch.ones(1)
    torch.save(state_dict, tmp_path / 'odd.pth')
    build(init_cfg=pretrained(tmp_path / 'odd.pth')).init_weights()
    text, level = logged[-1]
    assert level == logging.WARNING
    assert 'missing (1): blocks.0.norm1.weight' in text
    assert 'unexpected (1): blocks.0.surprise' in text

    torch.save({'a': torch.ones(1)}, tmp_path / 'foreign.pth')
    with pytest.raises(ValueError, match='no tensor of'):
        build(init_cfg=pretrained(tmp_path / 'foreign.pth')).init_weights()
    with pytest.raises(ValueError, match=r"begins with prefix='body\.'; it has cls_token"):
        build(init_cfg=pretrained(tmp_path / 'odd.pth', prefix='body.')).init_weights()
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth'):
        build(init_cfg=pretrained(tmp_path / 'nowhere.pth')).init_weights()
    dense = timm.create_model('vit_tiny_patch16_224', **dense_args())
    torch.save(dense.state_dict(), tmp_path / 'dense.pth')
    with pytest.raises(ValueError, match='lossy'):
        build(init_cfg=pretrained(tmp_path / 'dense.pth')).init_weights()
