"""Pascal VOC's format: mmdet's samples, checked; AP by class."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_data import BOXES
from mmdet.datasets import XMLDataset
from mmdet.evaluation import VOCMetric
from mmdet.registry import DATASETS
from voc_data import write_voc

from masa_vit.detection import CheckedXMLDataset, ClasswiseVOCMetric

CLASSES = ('square', 'disk', 'triangle')


@pytest.fixture
def root(coco_root: Path, tmp_path: Path) -> Path:
    return write_voc(coco_root, tmp_path / 'voc')


def args(root: Path, split: str = 'train', **kwargs: Any) -> dict[str, Any]:
    defaults = dict(
        data_root=str(root),
        ann_file=f'ImageSets/Main/{split}.txt',
        metainfo=dict(classes=CLASSES),
        pipeline=BOXES,
        serialize_data=False,
    )
    return defaults | kwargs


def build(root: Path, **kwargs: Any) -> CheckedXMLDataset:
    return DATASETS.build(dict(type='CheckedXMLDataset', **args(root, **kwargs)))


@pytest.mark.parametrize(
    'kwargs', [{}, dict(split='val', test_mode=True), dict(metainfo=dict(classes=('disk',)))]
)
def test_good_data_gives_the_boxes_of_mmdet(root: Path, kwargs: dict, log: list) -> None:
    found = build(root, **kwargs)
    expected = XMLDataset(**args(root, data_prefix=dict(sub_data_root=''), **kwargs))
    assert len(found) == len(expected) > 0
    for index in range(len(found)):
        own, other = found.get_data_info(index), expected.get_data_info(index)
        assert own['img_path'].endswith(other['img_path'].rpartition('/')[2])
        for key in ('bbox', 'bbox_label', 'ignore_flag'):
            assert [i[key] for i in own['instances']] == [i[key] for i in other['instances']]
        assert found[index]['inputs'].shape == expected[index]['inputs'].shape
    assert [level for level, _ in log if level > logging.INFO] == []


def edit(root: Path, name: str, change: Callable[[str], str]) -> None:
    path = root / name
    path.write_text(change(path.read_text()))


FIRST = 'Annotations/train_1.xml'
LIST = 'ImageSets/Main/train.txt'
REFUSED: dict[str, tuple[str, Callable[[str], str], str]] = {
    'a truncated file': (FIRST, lambda text: text[:-20], r'train_1\.xml is not XML'),
    'another format': (FIRST, lambda text: '<html></html>', 'its root is <html>'),
    'another size': (FIRST, lambda text: text.replace('<width>', '<width>1'), 'another size'),
    'no name': (FIRST, lambda text: text.replace('<name>disk<', '<name><'), 'without a <name>'),
    'an empty list': (LIST, lambda text: '\n', r'train\.txt is empty'),
    'a name twice': (LIST, lambda text: text + 'train_1\n', 'names are given more than once: train_1'),
    'a list of a class': (LIST, lambda text: text.replace('_1\n', '_1  1\n'), r'train_1  1\.xml'),
}  # fmt: skip


@pytest.mark.parametrize('fault', REFUSED)
def test_refused(root: Path, fault: str) -> None:
    name, change, message = REFUSED[fault]
    edit(root, name, change)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(root)


def test_missing_files(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'no list of images .*trainval\.txt'):
        build(root, ann_file='ImageSets/Main/trainval.txt')
    (root / 'JPEGImages/train_2.jpg').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of the 6 images.*train_2\.jpg'):
        build(root)


def test_a_misspelled_class_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r'no category Disk(.|\n)*are: disk, square, tri'):
        build(root, metainfo=dict(classes=('square', 'Disk', 'triangle')))
    with pytest.raises(ValueError, match='has none of the 1 classes Disk'):
        build(root, split='val', metainfo=dict(classes=('Disk',)), test_mode=True)


def test_a_class_may_be_absent_in_validation(root: Path) -> None:
    for path in (root / 'Annotations').glob('val_*.xml'):
        path.write_text(path.read_text().replace('disk', 'square'))
    assert build(root, split='val', test_mode=True).metainfo['classes'] == CLASSES


def test_bad_boxes_are_left_out(root: Path, log: list) -> None:
    edit(root, FIRST, lambda text: text.replace('<xmax>', '<xmax>-', 1).replace('ymin>', 'y>', 2))
    assert len(build(root).get_data_info(0)['instances']) == 3
    ((_, text),) = log
    assert '1 of 19 annotations cannot be used' in text
    assert 'not four finite numbers' in text


def test_a_size_that_is_missing_is_read_from_the_image(root: Path) -> None:
    size = build(root).get_data_info(0)['width']
    edit(root, FIRST, lambda text: text.replace(f'<width>{size}<', '<width>0<'))
    assert build(root).get_data_info(0)['width'] == size


def test_ap_of_each_class() -> None:
    """One class found exactly, one beside its place, one not at all."""
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 60, 20]], np.float32)
    truth = dict(
        bboxes=boxes,
        labels=np.arange(3),
        bboxes_ignore=np.zeros((0, 4), np.float32),
        labels_ignore=np.zeros(0, int),
    )
    scored = np.hstack([boxes, np.full((3, 1), 0.9, np.float32)])
    found = [scored[:1], scored[1:2] + np.array([15, 15, 15, 15, 0]), np.zeros((0, 5), np.float32)]
    results = [(truth, found)] * 4
    metrics = []
    for kind in (ClasswiseVOCMetric, VOCMetric):
        metric = kind(iou_thrs=[0.5, 0.75], eval_mode='area')
        metric.dataset_meta = dict(classes=CLASSES)
        metrics.append(metric.compute_metrics(results))
    own, stock = metrics
    assert {key: own[key] for key in stock} == pytest.approx(stock)
    assert own['AP50_square'] == pytest.approx(1.0)
    assert own['AP50_disk'] == own['AP75_triangle'] == 0.0
    assert own['mAP'] == pytest.approx(1 / 3)
