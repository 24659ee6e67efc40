from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from coco_data import BOXES, MASKS, args, build, edit, named
from mmdet.datasets import CocoDataset
from mmengine.dataset import ClassBalancedDataset, ConcatDataset, RepeatDataset


@pytest.mark.parametrize(
    'kwargs',
    [
        {},
        dict(test_mode=True),
        dict(lazy_init=True),
        dict(serialize_data=True),
        dict(indices=4),
        dict(indices=[5, 0]),
        dict(filter_cfg=dict(filter_empty_gt=True, min_size=60)),
        named('square', 'triangle'),
        dict(pipeline=BOXES),
    ],
    ids=lambda kwargs: '-'.join(kwargs) or 'plain',
)
def test_good_data_gives_the_samples_of_mmdet(coco_root: Path, kwargs: dict, log: list) -> None:
    expected, found = CocoDataset(**args(coco_root, **kwargs)), build(coco_root, **kwargs)
    assert len(found) == len(expected) > 0
    assert found.metainfo == expected.metainfo
    for index in range(len(expected)):
        assert found.get_data_info(index) == expected.get_data_info(index)
        assert found.get_cat_ids(index) == expected.get_cat_ids(index)
        sample, other = found[index], expected[index]
        assert torch.equal(sample['inputs'], other['inputs'])
        gt, other_gt = (data['data_samples'].gt_instances for data in (sample, other))
        assert torch.equal(gt.bboxes.tensor, other_gt.bboxes.tensor)
        assert torch.equal(gt.labels, other_gt.labels)
        if 'masks' in gt:
            assert (gt.masks.masks == other_gt.masks.masks).all()
    assert [level for level, _ in log if level > logging.INFO] == []


@pytest.mark.parametrize('poly2mask', [True, False])
def test_crowd_is_kept(coco_root: Path, poly2mask: bool) -> None:
    load = MASKS[1] | dict(poly2mask=poly2mask)
    sample = build(coco_root, pipeline=[MASKS[0], load, MASKS[2]])[0]['data_samples']
    assert len(sample.gt_instances) == 3
    assert len(sample.ignored_instances) == 1
    if poly2mask:
        mask = sample.ignored_instances.masks.masks[0]
        assert mask[:, :4].all()
        assert mask.sum() == 4 * mask.shape[0]


def test_wrapped(coco_root: Path) -> None:
    data = build(coco_root, lazy_init=True)
    assert len(RepeatDataset(data, times=3)) == 18
    assert len(ConcatDataset([data, build(coco_root, split='val2017')])) == 10
    balanced = ClassBalancedDataset(data, oversample_thr=0.1)
    assert balanced[0]['inputs'].shape == (3, 64, 80)


def test_missing_annotation_file(coco_root: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r'no annotation file /.*/instances_nope\.json'
    ) as e:
        build(coco_root, split='nope')
    assert 'train_dataloader.dataset.data_root=DIR' in str(e.value)
    assert 'data_root/ann_file' in str(e.value)


def test_test_images_need_no_annotations(coco_root: Path) -> None:
    edit(coco_root, lambda content: content.pop('annotations'))
    assert len(build(coco_root, test_mode=True)) == 6
    with pytest.raises(ValueError, match='no list of annotations'):
        build(coco_root)


def test_labels_follow_the_names_not_the_order_of_the_file(coco_root: Path) -> None:
    names = [i['bbox_label'] for i in build(coco_root).get_data_info(0)['instances']]
    assert names == [0, 2, 1, 0]
    data = build(coco_root, **named('triangle', 'disk', 'square'))
    assert [i['bbox_label'] for i in data.get_data_info(0)['instances']] == [2, 0, 1, 2]
    edit(coco_root, lambda content: content['categories'].reverse())
    assert [i['bbox_label'] for i in build(coco_root).get_data_info(0)['instances']] == names


def test_evaluated_data_must_have_the_order_of_the_file(coco_root: Path) -> None:
    with pytest.raises(ValueError, match=r"classes=\('square', 'disk', 'triangle',\)\)") as error:
        build(coco_root, test_mode=True, **named('triangle', 'square', 'disk'))
    assert 'another order' in str(error.value)
    assert len(build(coco_root, test_mode=True, **named('square', 'triangle'))) == 6


def test_classes_that_the_file_has_not(coco_root: Path) -> None:
    with pytest.raises(ValueError, match=r'no category cube, which .* are: square, disk, tri') as e:
        build(coco_root, **named('square', 'cube', 'triangle'))
    assert 'num_classes' in str(e.value)
    with pytest.raises(ValueError, match='none of the 80 classes person, bicycle') as error:
        build(coco_root, metainfo=None)
    assert "metainfo=dict(classes=('square', 'disk', 'triangle',))" in str(error.value)
    assert 'num_classes=3' in str(error.value)


@pytest.mark.parametrize('lazy_init', [False, True])
@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        ('disk', r"string 'disk'.*classes=\('disk',\)"),
        (('disk', 'square', 'disk'), 'more than once: disk'),
        ((), 'is empty'),
        (7, 'expects a list of names, got 7'),
        ((1, 2), r'expects a list of names, got \(1, 2\)'),
    ],
)
def test_classes_that_are_none(
    coco_root: Path, classes: Any, message: str, lazy_init: bool
) -> None:
    with pytest.raises(ValueError, match=message):
        build(coco_root, metainfo=dict(classes=classes), lazy_init=lazy_init)


def test_classes_from_a_text_file(coco_root: Path) -> None:
    """A string may be mmengine's file of names."""
    path = coco_root / 'names.txt'
    path.write_text('square\ndisk\ntriangle\n')
    assert build(coco_root, metainfo=dict(classes=str(path))).metainfo['classes'][1] == 'disk'


def test_categories_left_out_are_told_once(coco_root: Path, log: list) -> None:
    data = build(coco_root, **named('disk'))
    assert len(data) == 6
    assert [len(data.get_data_info(index)['instances']) for index in range(6)] == [1] * 6
    assert len(log) == 1
    level, text = log[0]
    assert level == logging.INFO
    assert text.endswith('leaves out these categories (annotations): square (7), triangle (6)')


def test_missing_images(coco_root: Path) -> None:
    for number in (2, 5):
        (coco_root / 'train2017' / f'{number:012d}.jpg').unlink()
    with pytest.raises(
        FileNotFoundError, match=r'2 of the 6 images that .* do not exist: '
    ) as error:
        build(coco_root)
    assert str(coco_root / 'train2017' / '000000000005.jpg') in str(error.value)
    assert 'data_prefix' in str(error.value)
    with pytest.raises(FileNotFoundError, match=r'6 of the 6 .*00000001\.jpg, (.*, ){4}\.\.\.'):
        build(coco_root, data_prefix=dict(img='nowhere'))
    with pytest.raises(ValueError, match='has no img; expected the folder of the images'):
        build(coco_root, data_prefix=dict())


def test_images_in_folders_of_their_own(coco_root: Path) -> None:
    def move(content: dict) -> None:
        for image in content['images'][::2]:
            name = image['file_name']
            image['file_name'] = f'a/b/{name}'
            (coco_root / 'train2017' / name).rename(coco_root / 'train2017' / 'a' / 'b' / name)

    (coco_root / 'train2017' / 'a' / 'b').mkdir(parents=True)
    edit(coco_root, move)
    assert build(coco_root)[0]['inputs'].shape == (3, 64, 80)
    next((coco_root / 'train2017' / 'a').rglob('*.jpg')).unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of the 6 .*/train2017/a/b/0'):
        build(coco_root)


def test_images_that_a_folder_lists_by_another_name(
    coco_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Mac, which finds A.JPG by the name a.jpg."""
    monkeypatch.setattr('os.scandir', lambda folder: nullcontext([]))
    assert len(build(coco_root)) == 6


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(backend_args=dict(backend='http')),
        dict(data_prefix=dict(img='s3://bucket/train2017')),
        dict(pipeline=[MASKS[0] | dict(backend_args=dict(backend='http'))]),
    ],
)
def test_images_elsewhere_are_not_looked_for(
    coco_root: Path, kwargs: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('mmdet.datasets.coco.get_local_path', lambda p, **_: nullcontext(p))
    nowhere = dict(data_prefix=dict(img='nowhere'))
    assert len(build(coco_root, **(nowhere | kwargs))) == 6
    with pytest.raises(FileNotFoundError, match='6 of the 6'):
        build(coco_root, backend_args=dict(backend='local'), **nowhere)


def test_masks_of_data_with_boxes_only(coco_root: Path) -> None:
    def strip(content: dict) -> None:
        for annotation in content['annotations']:
            del annotation['segmentation']

    edit(coco_root, strip)
    with pytest.raises(ValueError, match=r'faster_rcnn_vit_masa_custom\.py'):
        build(coco_root)
    assert len(build(coco_root, pipeline=BOXES)) == 6
