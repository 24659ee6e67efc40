"""Detectors of mmdet's own configs learn and predict with the stand-in."""

from __future__ import annotations

from pathlib import Path

import mmdet.models
import pytest
import torch
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d, RoIAlign
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from torch import nn

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
DETECTORS = (
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco.py',
    'retinanet/retinanet_r50_fpn_1x_coco.py',
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
    'dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py',
)


def slim(config: ConfigDict) -> None:
    """Narrower layers, no pretrained weights, and every box good enough to be suppressed."""
    config.backbone.update(base_channels=8, init_cfg=None, zero_init_residual=False)
    config.neck.update(in_channels=[32, 64, 128, 256], out_channels=32)
    for part in ('rpn_head', 'bbox_head'):
        if part in config:
            config[part].update(in_channels=32, feat_channels=32)
    if 'bbox_head' in config:
        config.bbox_head.num_classes = 5
    if 'roi_head' in config:
        for name, part in config.roi_head.items():
            for layer in part if isinstance(part, list) else [part]:
                if name.endswith('_extractor'):
                    layer.out_channels = 32
                elif name.endswith('_head'):
                    layer.in_channels = 32
                    layer.num_classes = 5
                    for width in ('conv_out_channels', 'fc_out_channels'):
                        if width in layer:
                            layer[width] = 32
    test = config.test_cfg.get('rcnn', config.test_cfg)
    test.update(score_thr=0.0, max_per_img=20)


@pytest.mark.parametrize('file', DETECTORS)
def test_detector_learns_and_predicts(file: str, device: str):
    config = Config.fromfile(CONFIGS / file).model
    slim(config)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config).to(device)
    model.init_weights()
    has_masks = 'mask_head' in config.get('roi_head', {})
    if 'roi_head' in config:
        layers = [m for m in model.modules() if isinstance(m, RoIAlign)]
        assert layers
        assert not any(layer.use_torchvision for layer in layers)
    if file.startswith('dcn'):
        kind = ModulatedDeformConv2d if file.startswith('dcnv2') else DeformConv2d
        assert sum(isinstance(m, kind) for m in model.modules()) == 13
    images = demo_mm_inputs(2, [(3, 128, 96), (3, 100, 128)], [2, 3], 5, with_mask=has_masks)

    train_step(model, images)
    model.eval()
    with torch.no_grad():
        predictions = model.test_step(images)

    for prediction in predictions:
        found = prediction.pred_instances
        height, width = prediction.ori_shape
        assert 0 < len(found) <= 20
        assert found.bboxes.isfinite().all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()
        if has_masks:
            assert found.masks.shape == (len(found), height, width)


def train_step(model: nn.Module, images: dict) -> None:
    """One step; every loss has to be finite and every learned parameter to take part."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    batch = model.data_preprocessor(images, training=True)
    model.train()
    losses = model.loss(batch['inputs'], batch['data_samples'])
    total, logged = model.parse_losses(losses)
    assert all(torch.isfinite(torch.as_tensor(value)) for value in logged.values()), logged
    assert total > 0
    total.backward()
    for name, parameter in model.backbone.named_parameters():
        assert not parameter.requires_grad or parameter.grad.any(), name
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
