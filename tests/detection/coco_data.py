"""Builds the dataset under test on `coco_root`, and edits its annotation files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS

from masa_vit.detection.coco_dataset import CheckedCocoDataset

MASKS = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]
BOXES = [MASKS[0], dict(type='LoadAnnotations', with_bbox=True), MASKS[2]]


def args(root: Path, split: str = 'train2017', **kwargs: Any) -> dict:
    defaults = dict(
        data_root=str(root),
        ann_file=f'annotations/instances_{split}.json',
        data_prefix=dict(img=f'{split}/'),
        metainfo=dict(classes=('square', 'disk', 'triangle')),
        pipeline=MASKS,
        backend_args=None,
        serialize_data=False,  # True collects garbage: half a second
    )
    return defaults | kwargs


def build(root: Path, **kwargs: Any) -> CheckedCocoDataset:
    return DATASETS.build(dict(type='CheckedCocoDataset', **args(root, **kwargs)))


def named(*classes: str) -> dict:
    return dict(metainfo=dict(classes=classes))


def edit(root: Path, change: Callable[[dict], Any], split: str = 'train2017') -> Path:
    path = root / 'annotations' / f'instances_{split}.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path
