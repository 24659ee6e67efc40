"""Every shipped detection config can be built: model, optimizer, data through its pipelines, hooks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.visualization import Visualizer
from voc_data import write_voc

from masa_vit.detection.stride_check import check_strides
from masa_vit.training import load_config
from masa_vit.training.config_variants import load_variant

ROOT = Path(__file__).parents[2] / 'configs'
VOC = 'faster_rcnn_vit_tiny_masa_mini'
CONFIGS = {path.stem: path for path in sorted((ROOT / 'det').glob('*.py'))}


def meta_model(cfg: Config) -> torch.nn.Module:
    with torch.device('meta'):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('name', CONFIGS)
def test_model_and_optimizer(name: str) -> None:
    cfg = load_config(CONFIGS[name])
    model = meta_model(cfg)
    maps = model.extract_feat(torch.empty(1, 3, 320, 256, device='meta'))
    check_strides(model)
    finest = 8 if name.startswith(('retinanet', 'fcos', 'dino')) else 4
    assert maps[0].shape[-2:] == (320 / finest, 256 / finest)
    assert len(maps) == (4 if name.startswith('dino') else 5)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    grouped = [id(p) for group in wrapper.optimizer.param_groups for p in group['params']]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    for scheduler in cfg.param_scheduler:
        args = dict(scheduler, optimizer=wrapper.optimizer, epoch_length=10)
        if not scheduler.get('convert_to_iter_based'):
            del args['epoch_length']
        PARAM_SCHEDULERS.build({'end': cfg.train_cfg.max_epochs, **args})
    milestones = [m for s in cfg.param_scheduler for m in s.get('milestones', [])]
    assert all(m < cfg.train_cfg.max_epochs for m in milestones)
    assert cfg.auto_scale_lr.base_batch_size >= cfg.train_dataloader.batch_size


@pytest.mark.parametrize('name', CONFIGS)
def test_data(name: str, coco_root: Path, coco_classes: tuple[str, ...], tmp_path: Path) -> None:
    voc_root = write_voc(coco_root, tmp_path / 'voc')
    cfg = load_config(CONFIGS[name])
    with_masks = 'mask' in name
    if 'overfit' in name:  # evaluated on what the dataset loads
        assert cfg.val_evaluator.ann_file is None
    elif name != VOC:
        assert cfg.val_evaluator.ann_file.endswith(cfg.val_dataloader.dataset.ann_file)
    assert cfg.test_dataloader == cfg.val_dataloader
    assert cfg.test_evaluator == cfg.val_evaluator
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        dataset_cfg = loader.dataset
        while 'dataset' in dataset_cfg:
            dataset_cfg = dataset_cfg.dataset
        if name == 'faster_rcnn_vit_masa_custom':
            assert dataset_cfg.ann_file in ('annotations/train.json', 'annotations/val.json')
            dataset_cfg.ann_file = 'annotations/instances_train2017.json'
            dataset_cfg.data_prefix.img = 'train2017/'
        dataset_cfg.data_root = str(voc_root if name == VOC else coco_root)
        dataset_cfg.metainfo = dict(classes=coco_classes)
        dataset = DATASETS.build(loader.dataset)
        sample = next(sample for sample in dataset if len(sample['data_samples'].gt_instances))
        assert sample['inputs'].dtype == torch.uint8
        assert ('masks' in sample['data_samples'].gt_instances) == with_masks
    if name == VOC:
        assert METRICS.build(cfg.val_evaluator).metric == 'mAP'
    else:
        assert cfg.val_evaluator.metric == (['bbox', 'segm'] if with_masks else 'bbox')


@pytest.mark.parametrize('name', CONFIGS)
def test_hooks(name: str) -> None:
    cfg = load_config(CONFIGS[name])
    Visualizer.get_instance('configs')
    for hook in [*cfg.default_hooks.values(), *cfg.custom_hooks]:
        HOOKS.build(hook)
    assert cfg.default_hooks.checkpoint.save_best == 'auto'


@pytest.mark.parametrize('name', CONFIGS)
def test_the_dense_baseline_differs_in_the_models_name_only(name: str) -> None:
    masa = load_config(CONFIGS[name]).to_dict()
    dense = load_variant(CONFIGS[name], dense=True).to_dict()
    assert masa['model']['backbone'].pop('model_name') != dense['model']['backbone'].pop(
        'model_name'
    )
    for cfg in (masa, dense):  # atoms, of which a dense model has none
        cfg['model']['backbone'].pop('freeze_atoms', None)
    assert masa['model']['backbone'].setdefault('model_args', {}) == dense['model'][
        'backbone'
    ].setdefault('model_args', {})
    assert masa == dense


def test_vitdets_learning_rates() -> None:
    """0.7 of the next block's, the heads' being the full one; atoms in the middle."""
    cfg = load_config(CONFIGS['mask_rcnn_vit_masa'])
    model = meta_model(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(p): name for name, p in model.named_parameters()}
    rate = {
        names[id(p)]: group['lr'] / 1e-4
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    assert rate['roi_head.bbox_head.fc_cls.weight'] == 1
    assert rate['neck.levels.0.1.weight'] == 1
    for index in range(12):
        assert rate[f'backbone.vit.blocks.{index}.mlp.fc1.weight'] == pytest.approx(
            0.7 ** (12 - index)
        )
    assert rate['backbone.vit.patch_embed.proj.weight'] == pytest.approx(0.7**13)
    assert rate['backbone.vit.blocks.attn_banks.q.atoms'] == pytest.approx(0.7**6)


def test_albumentations_change_pixels_and_keep_boxes(coco_root: Path) -> None:
    cfg = load_config(CONFIGS['mask_rcnn_vit_tiny_masa_512_albu'])
    plain = load_config(CONFIGS['mask_rcnn_vit_tiny_masa_512'])
    changed = 0
    samples = []
    for config in (cfg, plain):
        dataset_cfg = config.train_dataloader.dataset
        dataset_cfg.data_root = str(coco_root)
        dataset_cfg.metainfo = dict(classes=('square', 'disk', 'triangle'))
        dataset_cfg.pipeline = [
            step for step in dataset_cfg.pipeline if not step['type'].startswith('Random')
        ]
        dataset = DATASETS.build(dataset_cfg)
        samples.append([dataset[i % len(dataset)] for i in range(24)])
    for a, b in zip(*samples, strict=True):
        changed += not torch.equal(a['inputs'], b['inputs'])
        boxes = [s['data_samples'].gt_instances.bboxes.tensor.numpy() for s in (a, b)]
        np.testing.assert_allclose(*boxes, atol=0.5)
    assert 4 < changed < 24
