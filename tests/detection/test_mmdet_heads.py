"""Detectors of mmdet's own configs learn and predict with a MASA backbone; strides are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmdet.models
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope

from masa_vit.detection.stride_check import check_strides

CONFIGS = Path(mmdet.models.__file__).parents[1] / '.mim' / 'configs'
DEVICES = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]

TWO_STAGE = [4, 8, 16, 32, 64]
ONE_STAGE = [8, 16, 32, 64, 128]
SHALLOW = {'encoder.num_layers': 1, 'decoder.num_layers': 1}
DETECTORS: dict[str, tuple[list[int], dict[str, Any]]] = {
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': (TWO_STAGE, {}),
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': (TWO_STAGE, {}),
    'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py': (TWO_STAGE, {}),
    'grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco.py': (TWO_STAGE, {}),
    'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py': (TWO_STAGE, {}),
    'ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py': (TWO_STAGE, {}),
    'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py': (TWO_STAGE, {}),
    'retinanet/retinanet_r50_fpn_1x_coco.py': (ONE_STAGE, {}),
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': (ONE_STAGE, {}),
    'atss/atss_r50_fpn_1x_coco.py': (ONE_STAGE, {}),
    'gfl/gfl_r50_fpn_1x_coco.py': (ONE_STAGE, {}),
    'vfnet/vfnet_r50_fpn_1x_coco.py': (ONE_STAGE, {}),
    'paa/paa_r50_fpn_1x_coco.py': (ONE_STAGE, {}),
    'tood/tood_r50_fpn_1x_coco.py': (ONE_STAGE, {}),
    'ddod/ddod_r50_fpn_1x_coco.py': (ONE_STAGE, {}),
    'fsaf/fsaf_r50_fpn_1x_coco.py': (ONE_STAGE, {}),
    'free_anchor/freeanchor_r50_fpn_1x_coco.py': (ONE_STAGE, {}),
    'foveabox/fovea_r50_fpn_4xb4-1x_coco.py': (ONE_STAGE, {}),
    'autoassign/autoassign_r50-caffe_fpn_1x_coco.py': (ONE_STAGE, {}),
    'reppoints/reppoints-moment_r50_fpn_1x_coco.py': (ONE_STAGE, {}),
    'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py': (ONE_STAGE, {}),
    'solov2/solov2_r50_fpn_1x_coco.py': (TWO_STAGE, {}),
    'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py': ([32], SHALLOW),
    'dab_detr/dab-detr_r50_8xb2-50e_coco.py': ([32], SHALLOW),
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': ([8, 16, 32, 64], SHALLOW),
    'dino/dino-4scale_r50_8xb2-12e_coco.py': ([8, 16, 32, 64], {'num_queries': 50, **SHALLOW}),
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': (
        [4, 8, 16, 32],
        {
            'panoptic_head.in_channels': [256] * 4,
            'panoptic_head.pixel_decoder.encoder.num_layers': 1,
            'panoptic_head.transformer_decoder.num_layers': 1,
        },
    ),
    'yolof/yolof_r50-c5_8xb8-1x_coco.py': ([32], {}),
}


def build(file: str) -> torch.nn.Module:
    strides, changes = DETECTORS[file]
    config = Config.fromfile(CONFIGS / file)
    neck: Any = dict(type='SimpleFPN', in_channels=32, out_channels=256, strides=strides)
    if file.startswith('yolof'):
        neck = [neck, {**config.model.neck, 'in_channels': 256}]
    config.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    model = config.model
    model.neck = neck
    model.backbone = dict(
        type='MasaViT',
        model_name='vit_tiny_masa_s2',
        model_args=dict(img_size=64, embed_dim=32, depth=2, num_heads=2),
        window_size=2,
    )
    model.data_preprocessor.pop('batch_augments', None)  # Mask2Former: crops of 1024 pixels
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(model)


@pytest.mark.slow
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('file', DETECTORS)
def test_learns_and_predicts(file: str, device: str) -> None:
    torch.manual_seed(0)
    MessageHub.get_instance('test').update_info('epoch', 0)  # of a run; TOOD reads it
    model = build(file).to(device)
    model.init_weights()
    check_strides(model)
    images = demo_mm_inputs(2, [(3, 128, 96), (3, 100, 128)], [2, 3], 80, with_mask=True)
    batch = model.data_preprocessor(images, training=True)
    losses = model.train().loss(batch['inputs'], batch['data_samples'])
    total, logged = model.parse_losses(losses)
    assert all(torch.isfinite(torch.as_tensor(value)) for value in logged.values()), logged
    total.backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert any(parameter.grad.any() for parameter in model.backbone.parameters())
    torch.optim.SGD(model.parameters(), lr=1e-4).step()
    with torch.no_grad():
        predictions = model.eval().test_step(images)
    assert len(predictions) == 2
    for prediction in predictions:
        assert prediction.pred_instances.scores.isfinite().all()


@pytest.mark.parametrize(
    'file', [f for f, (strides, _) in DETECTORS.items() if strides is ONE_STAGE]
)
def test_other_strides_are_refused(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DETECTORS, file, (TWO_STAGE, DETECTORS[file][1]))
    with pytest.raises(ValueError, match=r'model\.neck\.strides=\[8, 16, 32, 64, 128\]'):
        check_strides(build(file))
