"""Feature maps whose strides are not those of the heads are refused before training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS

from masa_vit.detection import StrideCheckHook
from masa_vit.detection.stride_check import assumed_strides
from masa_vit.training import load_config

CONFIGS = Path(__file__).parents[2] / 'configs' / 'det'
TINY = {
    'model.backbone.model_name': 'vit_tiny_masa_s2',
    'model.backbone.model_args': {'img_size': 64, 'depth': 2},
    'model.backbone.window_size': 2,
    'model.neck.in_channels': 192,
    'model.data_preprocessor.pad_size_divisor': 64,
}


def build(name: str, **options: Any) -> torch.nn.Module:
    return MODELS.build(load_config(CONFIGS / f'{name}.py', {**TINY, **options}).model)


def check(model: torch.nn.Module) -> None:
    StrideCheckHook().before_train(SimpleNamespace(model=model))


@pytest.mark.parametrize('name', ['retinanet_vit_masa', 'fcos_vit_masa', 'mask_rcnn_vit_masa'])
def test_the_strides_of_a_config_are_those_of_its_maps(name: str) -> None:
    model = build(name).train()
    check(model)
    assert model.training
    assert model.backbone.training
    strides = dict(assumed_strides(model).values())
    assert strides[True] == ([4, 8, 16, 32, 64] if 'mask' in name else [8, 16, 32, 64, 128])


@pytest.mark.parametrize(
    ('name', 'key'),
    [
        ('retinanet_vit_masa', r'model\.bbox_head\.anchor_generator\.strides'),
        ('fcos_vit_masa', r'model\.bbox_head\.strides'),
    ],
)
def test_one_stage_heads_on_a_neck_for_two_stages(name: str, key: str) -> None:
    model = build(name, **{'model.neck.strides': [4, 8, 16, 32, 64]})
    with pytest.raises(ValueError, match=key) as error:
        check(model)
    assert 'model.neck.strides=[8, 16, 32, 64, 128]' in str(error.value)
    assert 'the feature maps have strides [4, 8, 16, 32, 64]' in str(error.value)


def test_roi_extractors_take_the_first_maps() -> None:
    key = 'model.roi_head.bbox_roi_extractor.featmap_strides'
    model = build('mask_rcnn_vit_masa', **{key: [8, 16, 32, 64]})
    with pytest.raises(ValueError, match=r'bbox_roi_extractor\.featmap_strides=\[8, 16, 32, 64\]'):
        check(model)


def test_patches_of_another_size() -> None:
    args = {'img_size': 64, 'depth': 2, 'patch_size': 8}
    model = build('mask_rcnn_vit_masa', **{'model.backbone.model_args': args})
    with pytest.raises(ValueError, match=r'have strides \[2, 4, 8, 16, 32\]'):
        check(model)


def test_windows_without_padding() -> None:
    check(build('retinanet_vit_masa', **{'model.backbone.pad_windows': False}))


def test_parts_of_a_detector_alone_are_not_checked() -> None:
    check(build('retinanet_vit_masa').neck)
