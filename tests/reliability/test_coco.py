"""Faults of COCO data are named before the training, or where the image is loaded; or read rightly."""

import json
import logging
import re

import numpy as np
import pycocotools.mask
import pytest

pytest.importorskip('mmdet', reason='detection')

import masa_vit.detection  # noqa: F401  registers the dataset

# isort: split
from coco_data import build
from image_files import huge_png
from mmengine.registry import DefaultScope
from PIL import Image
from tiny_detector import write_coco

from masa_vit.detection import CheckedCocoMetric


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.fixture
def root(tmp_path):
    return write_coco(tmp_path / 'coco')


@pytest.fixture
def log(monkeypatch):
    told = []
    monkeypatch.setattr(
        'masa_vit.detection.coco_dataset.print_log',
        lambda text, _, level: told.append((level, text)),
    )
    return told


def annotations(root):
    return root / 'annotations' / 'instances_train2017.json'


def edited(root, change):
    content = json.loads(annotations(root).read_text())
    change(content)
    annotations(root).write_text(json.dumps(content))


def set_first(kind, **fields):
    return lambda content: content[kind][0].update(fields)


def exchange_sizes(content):
    for image in content['images']:
        image['width'], image['height'] = image['height'], image['width']


REFUSED = {
    'width and height exchanged': (exchange_sizes, r'6 images have another size.*48x64'),
    'one wrong size': (set_first('images', width=90), r'1 images have another size.*000000000001'),
    'iscrowd as text': (set_first('annotations', iscrowd='0'), r'\[0\]\.iscrowd is "0" \(str\)'),
    'iscrowd 2': (set_first('annotations', iscrowd=2), r'iscrowd is 2 \(int\), expected 0 or 1'),
    'ignore as text': (set_first('annotations', ignore='0'), r'ignore is "0" \(str\)'),
    'id as text': (set_first('images', id='1'), r'images\[0\]\.id is "1" \(str\)'),
    'image_id as text': (set_first('annotations', image_id='1'), r'image_id is "1"'),
    'category_id as number': (set_first('annotations', category_id=1.0), r'category_id is 1\.0'),
    'file_name a number': (set_first('images', file_name=7), r'file_name is 7 \(int\)'),
    'name a number': (set_first('categories', name=3), r'categories\[0\]\.name is 3'),
    'width as text': (set_first('images', width='64'), 'no positive width and height'),
    'an id twice': (set_first('images', id=2), 'images ids are given more than once: 2'),
    'no file': (set_first('images', file_name='gone.jpg'), r'1 of the 6 images .* do not exist'),
    'no key': (lambda content: content['annotations'][0].pop('image_id'), 'has no image_id'),
    'no list': (lambda content: content.pop('categories'), 'no list of categories'),
}


@pytest.mark.parametrize('fault', REFUSED)
def test_refused(root, fault):
    change, message = REFUSED[fault]
    edited(root, change)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        build(root)
    assert 'instances_train2017.json' in str(error.value)


BOXES = {
    'negative size': ([5, 5, -9, 9], 'negative width or height'),
    'no width': ([5, 5, 0, 9], 'less than 1 pixel'),
    'shares of the image': ([0.1, 0.1, 0.4, 0.5], 'less than 1 pixel'),
    'outside': ([500, 5, 9, 9], 'outside the image'),
    'three numbers': ([5, 5, 9], 'not four finite numbers'),
    'text': (['5', 5, 9, 9], 'not four finite numbers'),
    'far beyond the image': ([5, 5, 1e300, 9], 'reaches far beyond'),
    'NaN': ([float('nan'), 5, 9, 9], 'not four finite numbers'),
}


@pytest.mark.parametrize('fault', BOXES)
def test_boxes_are_left_out_and_named(root, log, fault):
    box, message = BOXES[fault]
    edited(root, set_first('annotations', bbox=box))
    data = build(root)
    assert len(data.get_data_info(0)['instances']) == 3  # of 4, one is a crowd
    ((level, text),) = log
    assert level == logging.WARNING
    assert '1 of 19 annotations cannot be used' in text
    assert message in text
    assert 'annotation 1, image 000000000001.jpg' in text


def test_boxes_of_one_pixel_are_named(root, log):
    edited(root, set_first('annotations', bbox=[5, 5, 1, 9]))
    assert len(build(root).get_data_info(0)['instances']) == 4
    assert '1 boxes are 1 pixel wide or high' in log[0][1]


@pytest.mark.parametrize('text', ['', '{"images": [', '[]', '{}', 'null', '\ufeff', '[' * 10**5])
def test_files_that_are_not_coco(root, text):
    annotations(root).write_text(text, encoding='utf-8')
    with pytest.raises(ValueError, match=r'instances_train2017\.json'):
        build(root)


def test_a_byte_order_mark_and_backslashes_are_read(root):
    """As Windows programs write them."""
    (root / 'train2017' / 'sub').mkdir()
    (root / 'train2017' / '000000000001.jpg').rename(root / 'train2017' / 'sub' / '1.jpg')
    edited(root, set_first('images', file_name='sub\\1.jpg'))
    text = annotations(root).read_text()
    annotations(root).write_text(text, encoding='utf-8-sig')
    data = build(root)
    assert data.get_data_info(0)['img_path'].endswith('train2017/sub/1.jpg')
    assert data[0]['inputs'].shape == (3, 64, 80)
    metric = CheckedCocoMetric(ann_file=str(annotations(root)), metric='bbox')
    assert len(metric._coco_api.imgs) == 6


def test_an_image_that_is_turned_by_its_exif(root):
    """Annotated as a viewer shows it, or as it is stored: the first is right, the second refused."""
    path = root / 'train2017' / '000000000001.jpg'
    stored = np.array(Image.open(path))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(stored))).save(path, exif=exif)
    assert build(root)[0]['inputs'].shape == (3, *stored.shape[:2])
    Image.fromarray(stored).save(path, exif=exif)
    with pytest.raises(ValueError, match=r'000000000001\.jpg is 64x80, listed as 80x64'):
        build(root)


def test_the_size_is_compared_at_every_load(root):
    data = build(root)
    path = root / 'train2017' / '000000000002.jpg'
    Image.open(path).resize((100, 50)).save(path)
    with pytest.raises(
        ValueError, match=r'000000000002\.jpg is 100x50 pixels, but 96x64 in the ann'
    ):
        data[1]


def test_a_huge_image_is_refused_before_it_is_decoded(root):
    (root / 'train2017' / '000000000001.jpg').write_bytes(huge_png())
    edited(root, set_first('images', width=20_000, height=20_000))
    with pytest.raises(
        ValueError, match=r'000000000001\.jpg: Image size \(400000000 pixels\) exceeds'
    ):
        build(root)[0]


MASKS = {
    'compressed run lengths that do not fill the image': (
        dict(size=[64, 80], counts='zz'), 'do not add up|not numbers of pixels',
    ),
    'compressed run lengths of other characters': (
        dict(size=[64, 80], counts='\u00e9'), 'not numbers of pixels',
    ),
    'a polygon far beyond the image': ([[1, 1, 1e12, 1, 9, 9]], 'polygon that reaches far beyond'),
    'a polygon with text': ([[1, 1, 'a', 1, 9, 9]], 'something else than finite numbers'),
}  # fmt: skip


@pytest.mark.parametrize('fault', MASKS)
def test_masks_are_left_out_and_named(root, log, fault):
    segmentation, message = MASKS[fault]
    edited(root, set_first('annotations', segmentation=segmentation))
    build(root)
    assert re.search(f'1 of 19 annotations cannot be used(.|\n)*({message})', log[0][1])


def test_compressed_run_lengths_are_read(root, log):
    """As pycocotools writes them."""
    mask = np.zeros((64, 80), np.uint8, order='F')
    mask[5:30, 7:60] = 1
    rle = pycocotools.mask.encode(mask)
    rle['counts'] = rle['counts'].decode()
    edited(root, set_first('annotations', segmentation=rle))
    data = build(root)
    assert log == []
    masks = data[0]['data_samples'].gt_instances.masks.to_ndarray()
    assert (masks == mask).all(axis=(1, 2)).any()


def test_the_annotation_id_0_counts_in_the_evaluation(root):
    def from_zero(content):
        for number, annotation in enumerate(content['annotations']):
            annotation['id'] = number

    edited(root, from_zero)
    metric = CheckedCocoMetric(ann_file=str(annotations(root)), metric='bbox')
    assert sorted(metric._coco_api.anns) == list(range(1, 20))
