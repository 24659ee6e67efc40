"""The boxes of a detector's data, counted and measured before training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from coco_data import BOXES, build, edit
from mmengine.dataset import RepeatDataset
from PIL import Image

from masa_vit.cli import main
from masa_vit.detection.data_report import describe_data, find_scales
from masa_vit.training import load_config, train
from masa_vit.training.model_building import build_model

RESIZED = [*BOXES[:2], dict(type='Resize', scale_factor=0.5), BOXES[2]]


def test_objects_and_sizes(coco_root: Path) -> None:
    content = json.loads((coco_root / 'annotations/instances_train2017.json').read_text())
    report = describe_data(RepeatDataset(build(coco_root, pipeline=RESIZED), times=3))
    assert (report.images, report.without_objects, report.sampled) == (6, 0, 6)
    assert (report.duplicates, report.thin) == (0, 0)
    assert [each.name for each in report.classes] == ['square', 'disk', 'triangle']
    for each, category in zip(report.classes, (1, 3, 7), strict=True):
        boxes = [
            annotation['bbox']
            for annotation in content['annotations']
            if annotation['category_id'] == category and not annotation['iscrowd']
        ]
        expected = torch.tensor(boxes)[:, 2:].prod(1).sqrt()
        assert (each.objects, each.images) == (6, 6)
        torch.testing.assert_close(torch.tensor(each.sides).float(), expected)
        torch.testing.assert_close(torch.tensor(each.resized).float(), expected / 2)


def test_warnings(coco_root: Path) -> None:
    def spoil(content: dict) -> None:
        first = content['annotations'][0]
        content['annotations'].append({**first, 'id': 100})
        content['annotations'][1]['bbox'][2] = 1
        content['annotations'] = [a for a in content['annotations'] if a['image_id'] != 3]

    edit(coco_root, spoil)
    report = describe_data(build(coco_root, pipeline=RESIZED), num_samples=4)
    assert (report.without_objects, report.sampled) == (1, 4)
    texts = report.warnings(token=4.0, anchor=100.0)
    assert [text.partition(':')[0] for text in texts[:3]] == ['square', 'disk', 'triangle']
    assert all(
        text.endswith('px after resizing, below the smallest anchor of 100') for text in texts[:3]
    )
    assert texts[3:] == [
        '1 boxes occur twice in an image, with the same class',
        '1 boxes are at most 1 pixel wide or high',
    ]
    assert 'below one token of 16 and the smallest' in report.warnings(16.0, 32.0)[0]
    assert report.warnings(None, None) == texts[3:]


def test_scales(det_config: Path) -> None:
    cfg = load_config(det_config, {'model.rpn_head.anchor_generator.scales': [4]})
    assert find_scales(build_model(cfg)) == (16.0, pytest.approx(16.0))
    cfg = load_config(
        'masa_vit::det/fcos_vit_masa.py', {'model.backbone.model_args': dict(depth=4)}
    )
    assert find_scales(build_model(cfg)) == (16.0, None)


def test_command(det_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sheet = tmp_path / 'sheet.png'
    assert main(['data', str(det_config), '--out', str(sheet)]) == 0
    out = capsys.readouterr().out
    assert 'token: 16 px, smallest anchor: 32 px' in out
    assert 'train: 6 images, 0 of them without objects' in out
    assert 'val: 4 images' in out
    assert 'warning: square: median side ' in out
    assert Image.open(sheet).size[0] > 4 * 64
    assert main(['data', str(det_config), '--out', str(sheet)]) == 1
    assert 'exists' in capsys.readouterr().err
    assert main(['data', 'masa_vit::cls/vit_tiny_masa_s4_digits.py']) == 1
    assert 'is not the config of a detector' in capsys.readouterr().err


def test_training_warns_once(det_config: Path, tmp_path: Path) -> None:
    summary = train(det_config, tmp_path / 'run', cfg_options={'train_cfg.max_epochs': 1})
    assert summary['finished']
    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert log.read_text().count('training data: square: median side') == 1
