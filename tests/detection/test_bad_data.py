"""Objects and images that nobody can train on."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from coco_data import BOXES, MASKS, build, edit, named
from torch._utils import ExceptionWrapper

from masa_vit.utils.images import UnreadableImageError

BAD = [
    (dict(bbox=[5, 5, 0.5, 20]), 'a bbox less than 1 pixel wide or high'),
    (dict(category_id=2), 'a category_id that no category has'),
    (dict(image_id=99), 'an image_id that no image has'),
]
BAD_MASKS = [
    (dict(segmentation=[]), 'no segmentation, or an empty one'),
    (dict(segmentation=[[1, 2, 3, 4]]), 'no polygon of 3 points or more'),
    (dict(segmentation=[[1, 2, 9, float('nan'), 9, 9]]), 'something else than finite numbers'),
]


def change_first(root: Path, fields: dict) -> None:
    """Change the first annotation, a square on 000000000001.jpg; `...` removes a field."""

    def change(content: dict) -> None:
        changed = content['annotations'][0] | fields
        content['annotations'][0] = {k: v for k, v in changed.items() if v is not ...}

    edit(root, change)


@pytest.mark.parametrize(('fields', 'message'), BAD + BAD_MASKS)
def test_bad_annotation_is_left_out_and_told(
    coco_root: Path, fields: dict, message: str, log: list
) -> None:
    change_first(coco_root, fields)
    data = build(coco_root)
    assert [i['bbox_label'] for i in data.get_data_info(0)['instances']] == [2, 1, 0]
    assert len(data[0]['data_samples'].gt_instances) == 2
    assert len(log) == 1
    level, text = log[0]
    assert level == logging.WARNING
    assert '1 of 19 annotations cannot be used:\n  1 with ' in text
    assert re.search(message, text)
    assert "on_bad_annotation='raise'" in text
    image = 'none' if 'image_id' in fields else '000000000001.jpg'
    assert f'(annotation 1, image {image})' in text
    with pytest.raises(ValueError, match=rf'instances_train2017.json: 1 of 19(.|\n)*{message}'):
        build(coco_root, on_bad_annotation='raise')


@pytest.mark.parametrize(('fields', 'message'), BAD_MASKS)
def test_boxes_without_masks_are_kept_where_only_boxes_are_trained(
    coco_root: Path, fields: dict, message: str, log: list
) -> None:
    change_first(coco_root, fields)
    sample = build(coco_root, pipeline=BOXES, on_bad_annotation='raise')[0]['data_samples']
    assert len(sample.gt_instances) == 3
    assert log == []


def test_bad_annotations_are_counted_by_kind(coco_root: Path, log: list) -> None:
    def change(content: dict) -> None:
        for annotation in content['annotations'][:5]:
            annotation['bbox'] = [5, 5, 0, 9]
        content['annotations'][7]['area'] = -1

    edit(coco_root, change)
    build(coco_root)
    assert len(log) == 1
    assert (
        'json: 6 of 19 annotations cannot be used:\n'
        '  5 with a bbox less than 1 pixel wide or high (annotation 1, image 000000000001.jpg; '
        'annotation 2, image 000000000001.jpg; annotation 3, image 000000000001.jpg; ...)\n'
        '  1 with an area that is not a positive number (annotation 8, image 000000000003.jpg)\n'
    ) in log[0][1]


def test_nothing_of_categories_left_out_is_checked(coco_root: Path, log: list) -> None:
    change_first(coco_root, dict(bbox=...))
    assert len(build(coco_root, on_bad_annotation='raise', **named('disk', 'triangle'))) == 6
    change_first(coco_root, dict(ignore=1))
    assert len(build(coco_root, on_bad_annotation='raise').get_data_info(0)['instances']) == 3


def test_on_bad_annotation_is_checked(coco_root: Path) -> None:
    with pytest.raises(ValueError, match="expects 'warn' or 'raise', got 'skip'"):
        build(coco_root, on_bad_annotation='skip')


def test_nothing_left_to_train_on(coco_root: Path) -> None:
    kwargs = dict(filter_cfg=dict(filter_empty_gt=True, min_size=32))
    with pytest.raises(
        ValueError, match='no image to train on: it has 6 images, 0 of them without'
    ):
        build(coco_root, filter_cfg=dict(min_size=500))
    path = edit(coco_root, lambda content: content.update(annotations=[]))
    with pytest.raises(
        ValueError, match=r'6 images, 6 of them without an object .*\(square, disk'
    ) as e:
        build(coco_root, **kwargs)
    assert str(path) in str(e.value)
    assert len(build(coco_root, test_mode=True, **kwargs)) == 6
    assert len(build(coco_root)) == 6  # images of nothing but background are allowed
    edit(coco_root, lambda content: content.update(images=[]))
    with pytest.raises(ValueError, match='no image to test on: it has 0 images'):
        build(coco_root, test_mode=True)


def test_nothing_but_bad_annotations(coco_root: Path) -> None:
    """As from a tool that writes the ids of the images as text."""

    def change(content: dict) -> None:
        for annotation in content['annotations']:
            annotation['image_id'] = str(annotation['image_id'])

    edit(coco_root, change)
    with pytest.raises(ValueError, match=r'annotations\[0\]\.image_id is "1" \(str\)'):
        build(coco_root)


def test_image_with_only_bad_objects_is_empty(coco_root: Path) -> None:
    def change(content: dict) -> None:
        for annotation in content['annotations']:
            if annotation['image_id'] == 3:
                annotation['bbox'][2] = 0

    edit(coco_root, change)
    data = build(coco_root, filter_cfg=dict(filter_empty_gt=True))
    assert [data.get_data_info(index)['img_id'] for index in range(len(data))] == [1, 2, 4, 5, 6]


@pytest.mark.parametrize('damage', ['truncated', 'text', 'empty', 'gone'])
@pytest.mark.parametrize('in_worker', [False, True])
def test_unreadable_image_is_named(coco_root: Path, damage: str, in_worker: bool) -> None:
    data = build(coco_root, test_mode=in_worker)
    path = coco_root / 'train2017' / '000000000002.jpg'
    content = path.read_bytes()
    path.write_bytes({'truncated': content[:500], 'text': b'hello'}.get(damage, b''))
    if damage == 'gone':
        path.unlink()

    def load() -> None:
        try:
            data[1]
        except UnreadableImageError:
            if not in_worker:
                raise
            # how a DataLoader brings a worker's error to the main process
            ExceptionWrapper(where='in DataLoader worker process 0').reraise()

    with pytest.raises(UnreadableImageError) as error:
        load()
    message = str(error.value)
    assert message.startswith(f'cannot read the image {path}: ')
    assert 'instances_train2017.json' in message
    assert 'Traceback' not in message
    assert data[0]['inputs'].shape == (3, 64, 80)


def test_errors_of_the_pipeline_are_not_taken_for_those_of_images(coco_root: Path) -> None:
    data = build(coco_root, pipeline=MASKS[:2])
    data.pipeline.transforms.append(lambda results: results['nothing'])
    with pytest.raises(KeyError, match='nothing'):
        data[0]
