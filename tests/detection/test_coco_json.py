from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from masa_vit.detection.coco_json import annotation_problem, read_coco

NAN = float('nan')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'train.json is not JSON, or is truncated'),
        ('{"images": [{"id": 1, ', 'is not JSON, or is truncated'),
        ('\udcff\udcfe', 'is not JSON, or is truncated'),
        ('[]', 'not in COCO format: it has a list, and no list of images, categories, annotations'),
        ('{"images": [], "shapes": []}', 'the keys images, shapes, and no list of categories, ann'),
        (
            '{"images": [{"id": 1}], "annotations": [], "categories": []}',
            r'images\[0\] is {"id": 1} and has no file_name, width, height; each of the images needs',
        ),
        (
            '{"images": [], "annotations": [{"id": 4, "bbox": [0, 0, 9, 9]}], "categories": []}',
            r'annotations\[0\] is {"id": 4, "bbox": .* and has no image_id, category_id; each of',
        ),
        (
            '{"images": [], "annotations": [], "categories": ["cat"]}',
            r'categories\[0\] is "cat" and',
        ),
    ],
)
def test_file_that_is_not_coco(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / 'train.json'
    path.write_bytes(text.encode('utf-8', 'surrogateescape'))
    with pytest.raises(ValueError, match=message):
        read_coco(str(path))


def content(**changes: list) -> dict:
    return (
        dict(
            images=[dict(id=i, file_name=f'{i}.jpg', width=80, height=64) for i in range(6)],
            annotations=[dict(id=i, image_id=1, category_id=1) for i in range(9)],
            categories=[dict(id=i, name=name) for i, name in ((1, 'cat'), (2, 'dog'))],
        )
        | changes
    )


def write(path: Path, **changes: list) -> str:
    path.write_text(json.dumps(content(**changes)))
    return str(path)


def test_ids_and_names_given_twice(tmp_path: Path) -> None:
    for key, change, message in (
        ('images', {}, '6 images ids are given more than once: 0, 1, 2, 3, 4, ...;'),
        ('annotations', {}, '9 annotations ids are given more than once: 0, 1, 2, 3, 4, ...;'),
        ('categories', {}, '2 categories ids are given more than once: 1, 2;'),
        ('categories', dict(id=3), '1 category names are given more than once: dog;'),
    ):
        entries = content()[key]
        again = [entries[-1] | change] if change else entries
        path = write(tmp_path / 'train.json', **{key: entries + again})
        with pytest.raises(ValueError, match=re.escape(f'{path}: {message}')):
            read_coco(path)


@pytest.mark.parametrize('width', [0, -5, None, '80', float('nan')])
def test_image_without_size(tmp_path: Path, width: Any) -> None:
    images = content()['images']
    images[3]['width'] = width
    path = write(tmp_path / 'train.json', images=images)
    with pytest.raises(ValueError, match=r'1 images have no positive width and height: 3\.jpg'):
        read_coco(path)


def test_good_file(tmp_path: Path) -> None:
    path = write(tmp_path / 'train.json')
    assert read_coco(path) == content()


def test_file_without_annotations(tmp_path: Path) -> None:
    path = tmp_path / 'test.json'
    path.write_text(json.dumps({k: v for k, v in content().items() if k != 'annotations'}))
    assert read_coco(str(path), with_annotations=False) == content(annotations=[])
    with pytest.raises(ValueError, match='no list of annotations'):
        read_coco(str(path))


IMAGES = {7: dict(id=7, file_name='7.jpg', width=80, height=64)}
BAD_BOXES = [
    (dict(bbox=[5, 5, 0.5, 20]), 'a bbox less than 1 pixel wide or high'),
    (dict(bbox=[5, 5, 20, 0.5]), 'a bbox less than 1 pixel wide or high'),
    (dict(bbox=[5, 5, 0, 0]), 'a bbox less than 1 pixel wide or high'),
    (dict(bbox=[20, 20, -10, 5]), 'a bbox of negative width or height'),
    (dict(bbox=[90, 5, 10, 10]), 'a bbox outside the image'),
    (dict(bbox=[5, -20, 10, 20]), 'a bbox outside the image'),
    (dict(bbox=[80, 5, 10, 10]), 'a bbox outside the image'),
    (dict(bbox=[5, NAN, 10, 10]), 'a bbox that is not four finite numbers'),
    (dict(bbox=[5, 5, float('inf'), 10]), 'a bbox that is not four finite numbers'),
    (dict(bbox=[1, 2, 3]), 'a bbox that is not four finite numbers'),
    (dict(bbox=['1', '2', '9', '9']), 'a bbox that is not four finite numbers'),
    (dict(bbox=...), 'no bbox'),
    (dict(area=...), 'no area'),
    (dict(area=0), 'an area that is not a positive number'),
    (dict(area=NAN), 'an area that is not a positive number'),
    (dict(image_id=99), 'an image_id that no image has'),
]
BAD_MASKS = [
    (dict(segmentation=...), 'no segmentation, or an empty one'),
    (dict(segmentation=[]), 'no segmentation, or an empty one'),
    (dict(segmentation=[[]]), 'no polygon of 3 points or more'),
    (dict(segmentation=[[1, 2, 3, 4]]), 'no polygon of 3 points or more'),
    (dict(segmentation=[1, 2, 9, 2, 9, 9]), 'not a list of polygons'),
    (dict(segmentation='triangle'), 'not a list of polygons'),
    (dict(segmentation=[[1, 2, 9, NAN, 9, 9]]), 'something else than finite numbers'),
    (dict(segmentation=[['1', 2, 9, 2, 9, 9]]), 'something else than finite numbers'),
    (dict(segmentation=dict(size=[80, 64], counts=[0, 5120])), r'size is not \[height, width\]'),
    (dict(segmentation=dict(size=[64, 80], counts=[0, 50])), 'do not add up'),
    (dict(segmentation=dict(size=[64, 80], counts=[-5, 5125])), 'not numbers of pixels'),
    (dict(segmentation=dict(size=[64, 80])), 'not numbers of pixels'),
]


def annotation(**fields: Any) -> dict:
    good = dict(
        id=1,
        image_id=7,
        category_id=1,
        bbox=[1, 2, 8, 7],
        area=28,
        iscrowd=0,
        segmentation=[[1, 2, 9, 2, 9, 9]],
    )
    return {key: value for key, value in (good | fields).items() if value is not ...}


@pytest.mark.parametrize('masks', [True, False])
@pytest.mark.parametrize(('fields', 'message'), BAD_BOXES)
def test_bad_box(fields: dict, message: str, masks: bool) -> None:
    problem = annotation_problem(annotation(**fields), IMAGES, masks)
    assert problem is not None
    assert re.search(message, problem)


@pytest.mark.parametrize(('fields', 'message'), BAD_MASKS)
def test_bad_mask(fields: dict, message: str) -> None:
    problem = annotation_problem(annotation(**fields), IMAGES, masks=True)
    assert problem is not None
    assert re.search(message, problem)
    assert annotation_problem(annotation(**fields), IMAGES, masks=False) is None


@pytest.mark.parametrize(
    'fields',
    [
        {},
        dict(bbox=[-5, -5, 6, 6]),
        dict(bbox=[79, 63, 50.5, 50]),
        dict(bbox=[0, 0, 1, 1]),
        dict(segmentation=[[1, 2], [1, 2, 9, 2, 9, 9]]),  # one is enough
        dict(segmentation=dict(size=[64, 80], counts=[0, 50, 5070]), iscrowd=1),
        dict(segmentation=dict(size=[64, 80], counts='R27i10000000000000n]4')),
        dict(bbox=..., area=..., ignore=1),  # left out by mmdet, whatever it has
    ],
)
def test_good_annotation(fields: dict) -> None:
    assert annotation_problem(annotation(**fields), IMAGES, masks=True) is None
