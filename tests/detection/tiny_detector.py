"""A tiny COCO data set and a tiny detector on it, for tests and the scripts that kill trainings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ('square', 'disk', 'triangle')
IDS = (1, 3, 7)  # with gaps, as COCO's own
COLOURS = ((220, 40, 40), (40, 200, 60), (50, 70, 230))


def write_coco(root: Path) -> Path:
    """data_root/annotations/instances_{train2017,val2017}.json and data_root/{train2017,val2017}.

    6 and 4 images of 64x48 to 96x64 pixels, each with one object of every class, which has its own
    colour; all are polygons. The first image of a split also has a crowd, as RLE.
    """
    (root / 'annotations').mkdir(parents=True)
    for split, count, seed in (('train2017', 6, 0), ('val2017', 4, 1)):
        (root / split).mkdir()
        content = _make_split(root / split, count, np.random.default_rng(seed))
        (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))
    return root


def _make_split(folder: Path, count: int, rng: np.random.Generator) -> dict:
    images: list[dict] = []
    annotations: list[dict] = []
    for number in range(1, count + 1):
        width, height = ((64, 48), (80, 64), (96, 64))[number % 3]
        pixels = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
        image = Image.fromarray(pixels)
        draw = ImageDraw.Draw(image)
        name = f'{number:012d}.jpg'
        images.append(dict(id=number, file_name=name, width=width, height=height))
        for place, index in enumerate(rng.permutation(3)):  # side by side
            radius = float(rng.integers(7, 10))
            centre = (width * (2 * place + 1) / 6, float(rng.integers(10, height - 10)))
            points = _outline(index, *centre, radius)
            draw.polygon([(x, y) for x, y in points], fill=COLOURS[index])
            annotations.append(_annotation(len(annotations) + 1, number, IDS[index], points))
        if number == 1:
            annotations.append(_crowd(len(annotations) + 1, number, height, width))
        image.save(folder / name, quality=95)
    categories = [
        dict(id=id_, name=name, supercategory='shape')
        for id_, name in zip(IDS, CLASSES, strict=True)
    ]
    return dict(info={}, images=images, annotations=annotations, categories=categories)


def _outline(index: int, x: float, y: float, radius: float) -> np.ndarray:
    corners, turn = ((4, 0.25), (16, 0.0), (3, -0.5))[index]
    angles = np.pi * (2 * np.arange(corners) / corners + turn)
    points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
    return points.round(1)  # (corners, 2)


def _annotation(id_: int, image_id: int, category_id: int, points: np.ndarray) -> dict:
    (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
    x, y = points.T
    area = abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
    return dict(
        id=id_,
        image_id=image_id,
        category_id=category_id,
        bbox=[x1, y1, x2 - x1, y2 - y1],
        area=area,
        iscrowd=0,
        segmentation=[points.ravel().tolist()],
    )


def _crowd(id_: int, image_id: int, height: int, width: int) -> dict:
    """The four leftmost columns, as run lengths (column by column): none, then 4 * height."""
    return dict(
        id=id_,
        image_id=image_id,
        category_id=IDS[0],
        bbox=[0, 0, 4, height],
        area=4 * height,
        iscrowd=1,
        segmentation=dict(size=[height, width], counts=[0, 4 * height, (width - 4) * height]),
    )


def write_config(path: Path, coco_root: Path) -> Path:
    """The mini Mask R-CNN made smaller still, on `coco_root`; one epoch is 3 steps."""
    annotations = coco_root / 'annotations'
    path.write_text(f"""
_base_ = 'masa_vit::det/mask_rcnn_vit_tiny_masa_mini.py'
_classes = {CLASSES}
_resize = dict(type='Resize', scale=(64, 64), keep_ratio=True)
_read = dict(type='LoadImageFromFile')
_annotations = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
_flip = dict(type='RandomFlip', prob=0.5)
_pack = dict(
    type='PackDetInputs',
    meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
)
_dataset = dict(data_root='{coco_root}', metainfo=dict(classes=_classes))
model = dict(
    backbone=dict(
        model_args=dict(img_size=64, patch_size=16, embed_dim=32, depth=4, num_heads=2, num_atoms=2),
        window_size=2,
    ),
    neck=dict(in_channels=32, out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=3),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(num_convs=1, in_channels=16, conv_out_channels=16, num_classes=3),
    ),
)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(**_dataset, pipeline=[_read, _annotations, _resize, _flip, _pack]),
)
val_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(**_dataset, pipeline=[_read, _resize, _annotations, _pack]),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{annotations / 'instances_val2017.json'}')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=2, val_interval=1)
param_scheduler = [dict(type='ConstantLR', factor=1.0)]
default_hooks = dict(visualization=dict(num_images=2, score_thr=0.0))
randomness = dict(seed=0)
""")
    return path
