from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmdet.registry import DATASETS, METRICS, MODELS
from mmengine.config import Config
from mmengine.dataset import RepeatDataset
from mmengine.evaluator import Evaluator
from mmengine.registry import HOOKS
from torch import nn

from masa_vit.training.seeding import SeededDataset

CLASSES = ('square', 'disk', 'triangle')


@pytest.fixture(scope='module')
def heads() -> Callable[..., SimpleNamespace]:
    """A model on the meta device, and its config: mmdet's own with `num_classes` in every head."""

    def build(name: str, num_classes: int = 3) -> SimpleNamespace:
        base = f"_base_ = 'mmdet::_base_/models/{name}.py'"
        cfg = Config.fromstring(base, '.py').model
        cfg.backbone.update(init_cfg=None, depth=18)
        cfg.neck.update(in_channels=[64, 128, 256, 512])
        parts = [cfg.get('bbox_head')]
        if 'roi_head' in cfg:
            parts = [cfg.roi_head.bbox_head, cfg.roi_head.get('mask_head')]
        for part in parts:
            for head in part if isinstance(part, list) else [part] if part else []:
                head.num_classes = num_classes
        with torch.device('meta'):
            return SimpleNamespace(model=MODELS.build(cfg), cfg=Config(dict(model=cfg)))

    return build


def dataset(root: Path, split: str = 'val2017', **kwargs: Any) -> Any:
    cfg = dict(
        type='CheckedCocoDataset',
        data_root=str(root),
        ann_file=f'annotations/instances_{split}.json',
        data_prefix=dict(img=f'{split}/'),
        metainfo=dict(classes=CLASSES),
        serialize_data=False,
        test_mode=split == 'val2017',
    )
    return DATASETS.build(cfg | kwargs)


def evaluator(root: Path, split: str = 'val2017', **kwargs: Any) -> Evaluator:
    ann_file = str(root / 'annotations' / f'instances_{split}.json')
    return Evaluator([METRICS.build(dict(type='CocoMetric', ann_file=ann_file) | kwargs)])


@pytest.fixture
def runner(
    coco_root: Path, heads: Callable[..., SimpleNamespace]
) -> Callable[..., SimpleNamespace]:
    """What the hook asks a Runner for."""

    def build(name: str = 'mask-rcnn_r50_fpn', num_classes: int = 3, **changes: Any) -> Any:
        built = heads(name, num_classes)
        data = dict(
            train=dataset(coco_root, 'train2017'),
            val=dataset(coco_root),
            val_evaluator=evaluator(coco_root, metric=['bbox', 'segm']),
        )
        data |= changes
        told: list[tuple[int, str]] = []
        return SimpleNamespace(
            model=built.model,
            cfg=built.cfg,
            train_dataloader=SimpleNamespace(dataset=data['train']),
            val_dataloader=SimpleNamespace(dataset=data['val']),
            test_dataloader=SimpleNamespace(dataset=data['val']),
            val_loop=object(),
            val_evaluator=data['val_evaluator'],
            test_evaluator=data['val_evaluator'],
            logger=SimpleNamespace(log=lambda level, text: told.append((level, text))),
            told=told,
        )

    return build


def hook() -> Any:
    return HOOKS.build(dict(type='DetClassesCheckHook'))


def edit(root: Path, change: Callable[[dict], Any], split: str = 'val2017') -> None:
    path = root / 'annotations' / f'instances_{split}.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    'name',
    ['mask-rcnn_r50_fpn', 'faster-rcnn_r50_fpn', 'cascade-mask-rcnn_r50_fpn', 'retinanet_r50_fpn'],
)
def test_fitting_data_passes(runner: Callable[..., Any], name: str) -> None:
    run = runner(name)
    hook().before_train(run)
    hook().before_val(run)
    hook().before_test(run)
    assert run.told == []


@pytest.mark.parametrize(
    ('name', 'keys'),
    [
        ('faster-rcnn_r50_fpn', ['roi_head.bbox_head']),
        ('mask-rcnn_r50_fpn', ['roi_head.bbox_head', 'roi_head.mask_head']),
        (
            'cascade-mask-rcnn_r50_fpn',
            [*(f'roi_head.bbox_head.{stage}' for stage in range(3)), 'roi_head.mask_head'],
        ),
        ('retinanet_r50_fpn', ['bbox_head']),
    ],
)
def test_heads_of_another_size(runner: Callable[..., Any], name: str, keys: list[str]) -> None:
    run = runner(name, num_classes=80)
    with pytest.raises(ValueError, match='the training data has 3 classes') as error:
        hook().before_train(run)
    listed = ', '.join(f'model.{key}.num_classes=80' for key in keys)
    assert f'(square, disk, triangle), but the model has {listed}.\n' in str(error.value)
    options = str(error.value).partition('--cfg-options ')[2].partition(';')[0].split()
    assert len(options) == len(keys)
    with pytest.raises(ValueError, match='the validation data has 3 classes'):
        hook().before_val(run)
    with pytest.raises(ValueError, match='the test data has 3 classes'):
        hook().before_test(run)
    # what the message says to set is what mends it
    run.cfg.merge_from_dict({key: int(value) for key, value in (o.split('=') for o in options)})
    with torch.device('meta'):
        run.model = MODELS.build(run.cfg.model)
    hook().before_train(run)


def test_wrapped_model_and_data(runner: Callable[..., Any], coco_root: Path) -> None:
    train = dataset(coco_root, 'train2017')
    both = DATASETS.build(dict(type='ConcatDataset', datasets=[train, train]))
    run, wrong = runner(), runner(num_classes=4)
    wrong.model = nn.DataParallel(wrong.model)
    for data in (RepeatDataset(train, 2), SeededDataset(train, seed=0, rank=0), both):
        run.train_dataloader.dataset = wrong.train_dataloader.dataset = data
        hook().before_train(run)
        with pytest.raises(
            ValueError, match=r'model has model\.roi_head\.bbox_head\.num_classes=4'
        ):
            hook().before_train(wrong)


def test_model_without_its_config(runner: Callable[..., Any]) -> None:
    """As when a Runner is given the model itself."""
    run = runner('cascade-mask-rcnn_r50_fpn', num_classes=2)
    run.cfg = Config(dict())
    with pytest.raises(ValueError, match=r'model\.roi_head\.mask_head\.2\.num_classes=2'):
        hook().before_train(run)


def test_other_parts_may_have_classes_of_their_own(runner: Callable[..., Any]) -> None:
    run = runner()
    run.model.roi_head.bbox_head.loss_cls.num_classes = -1  # as mmdet's CrossEntropyCustomLoss
    run.model.backbone.vit = nn.Module()
    run.model.backbone.vit.num_classes = 0  # as timm's models have
    hook().before_train(run)


def test_training_and_validation_differ(runner: Callable[..., Any], coco_root: Path) -> None:
    for names, message in (
        (('square', 'disk'), 'only in training: triangle'),
        (('disk', 'square', 'triangle'), 'the same names in another order'),
    ):
        run = runner()
        run.val_dataloader.dataset._metainfo['classes'] = names
        with pytest.raises(ValueError, match=message):
            hook().before_train(run)
        run.val_loop = None  # a run without validation
        hook().before_train(run)


def test_classes_of_other_datasets(runner: Callable[..., Any]) -> None:
    run = runner()
    run.train_dataloader.dataset = SimpleNamespace(metainfo=dict(classes='disk'))
    with pytest.raises(ValueError, match=r"training data is the string .*classes=\('disk',\)"):
        hook().before_train(run)
    run.train_dataloader.dataset = object()  # names no classes: nothing to compare
    hook().before_train(run)
    run.val_dataloader.dataset = SimpleNamespace(metainfo=dict(classes=CLASSES))
    hook().before_val(run)


def test_joined_datasets_differ(runner: Callable[..., Any], coco_root: Path) -> None:
    parts = [
        dataset(coco_root, 'train2017', metainfo=dict(classes=classes))
        for classes in (CLASSES, CLASSES[::-1])
    ]
    joined = DATASETS.build(dict(type='ConcatDataset', datasets=parts))
    with pytest.raises(ValueError, match=r'\(square, disk, triangle; triangle, disk, square\)'):
        hook().before_train(runner(train=joined))
    parts[1]._metainfo.update(classes=CLASSES, palette=[])
    joined = DATASETS.build(dict(type='ConcatDataset', datasets=parts))
    assert isinstance(joined.metainfo, list)
    hook().before_train(runner(train=joined))


def test_evaluation_on_a_file_of_other_images(runner: Callable[..., Any], coco_root: Path) -> None:
    run = runner(val=dataset(coco_root, 'train2017', test_mode=True))
    with pytest.raises(ValueError, match='2 of the 6 validation images are not in it') as error:
        hook().before_train(run)
    assert 'val_evaluator.ann_file should be the ann_file of the validation data' in str(
        error.value
    )
    with pytest.raises(ValueError, match=r'0005.jpg, .*/0+6.jpg\)\ntest_evaluator.ann_file'):
        hook().before_test(run)


def test_evaluation_on_other_images_of_the_same_ids(
    runner: Callable[..., Any], coco_root: Path
) -> None:
    run = runner()
    for image in run.val_evaluator.metrics[0]._coco_api.imgs.values():
        image['file_name'] = f'shapes/{image["file_name"]}'
    hook().before_train(run)
    run.val_evaluator.metrics[0]._coco_api.imgs[2]['file_name'] = 'another.jpg'
    with pytest.raises(ValueError, match=r'1 of the 4 validation images .* \(.*/0+2\.jpg\)\nval_'):
        hook().before_train(run)


def test_evaluation_on_a_part_of_the_images(runner: Callable[..., Any], coco_root: Path) -> None:
    run = runner(val=dataset(coco_root, indices=3))
    check = hook()
    check.before_train(run)
    check.before_val(run)  # as after every epoch
    assert len(run.told) == 1
    level, text = run.told[0]
    assert level == logging.WARNING
    assert text.startswith('validation runs on 3 of the 4 images')


def test_evaluation_on_a_file_of_other_categories(
    runner: Callable[..., Any], coco_root: Path
) -> None:
    run = runner()
    edit(coco_root, lambda content: content['categories'].reverse())
    run.val_evaluator = evaluator(coco_root)
    with pytest.raises(ValueError, match='its categories are triangle, disk, square; metainfo'):
        hook().before_val(run)
    edit(coco_root, lambda content: content.update(categories=content['categories'][1:]))
    run.val_evaluator = evaluator(coco_root)
    with pytest.raises(ValueError, match=r'are disk, square; .* names square, disk, triangle, and'):
        hook().before_val(run)
    run.val_evaluator.metrics[0].format_only = True  # evaluates nothing
    hook().before_val(run)


@pytest.mark.parametrize(
    ('fields', 'message', 'boxes'),
    [
        (dict(iscrowd=...), r'has no iscrowd\.', True),
        (dict(area=..., bbox=...), r'has no bbox, area\.', True),
        (dict(segmentation=...), 'has no segmentation', False),
        (dict(segmentation=[]), 'has no segmentation, or an empty one', False),
        (dict(segmentation=[[1, 2, 9, float('nan'), 9, 9]]), 'else than finite numbers', False),
        (dict(segmentation=[[1, 2, 5, 5]]), 'a segmentation that pycocotools cannot read', False),
    ],
)
def test_evaluation_that_would_fail_after_the_first_epoch(
    runner: Callable[..., Any], coco_root: Path, fields: dict, message: str, boxes: bool
) -> None:
    def change(content: dict) -> None:
        changed = content['annotations'][2] | fields
        content['annotations'][2] = {k: v for k, v in changed.items() if v is not ...}

    edit(coco_root, change)
    with pytest.raises(ValueError, match=rf'annotation 3 of the image 0+1\.jpg .*({message})'):
        hook().before_train(runner())
    run = runner(val_evaluator=evaluator(coco_root, metric='bbox'))
    if boxes:
        with pytest.raises(ValueError, match=message):
            hook().before_train(run)
    else:
        hook().before_train(run)
