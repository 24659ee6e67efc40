"""Read COCO annotation files and find annotations that cannot be trained on."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np

from masa_vit.utils.messages import first_of

__all__ = [
    'LAYOUT',
    'NO_MASK',
    'annotation_problem',
    'check_unique',
    'read_coco',
    'segmentation_problem',
]

NO_MASK = 'no segmentation, or an empty one, where masks are needed'

LAYOUT = (
    'Expected data_root/ann_file, as in DIR/annotations/instances_train2017.json, and the images in '
    'data_root/data_prefix.img, as in DIR/train2017/.\n'
    'Set data_root, ann_file and data_prefix in the config, or: --cfg-options '
    'train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR '
    'val_evaluator.ann_file=DIR/annotations/instances_val2017.json'
)


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    'id': ((int,), 'an integer'),
    'image_id': ((int,), 'an integer'),
    'category_id': ((int,), 'an integer'),
    'file_name': ((str,), 'a path'),
    'name': ((str,), 'a name'),
    'iscrowd': ((int, bool), '0 or 1'),
    'ignore': ((int, bool), '0 or 1'),
}


def read_coco(path: str, with_annotations: bool = True) -> dict:
    """Read a file in COCO's JSON format and check its structure, not the single annotations.

    Args:
        path: the file.
        with_annotations: refuse a file without ``annotations``, which those of COCO's test images
            are.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not JSON, lacks keys of COCO's format, has a field of another type, or gives
            an id twice.
    """
    where = os.path.abspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no annotation file {where}.\n{LAYOUT}')
    try:
        with open(path, encoding='utf-8-sig') as file:  # with a byte-order mark, too
            content = json.load(file)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError
        raise ValueError(
            f'{where} is not JSON, or is truncated ({error}); expected a file in COCO format'
        ) from error
    lists = ['images', 'categories', *(['annotations'] if with_annotations else [])]
    found = content if isinstance(content, dict) else {}
    if lacking := [key for key in lists if not isinstance(found.get(key), list)]:
        has = f'the keys {", ".join(found) or "(none)"}' if found else f'a {type(content).__name__}'
        raise ValueError(
            f'{where} is not in COCO format: it has {has}, and no list of {", ".join(lacking)}; '
            'expected {"images": [...], "annotations": [...], "categories": [...]}'
        )
    content.setdefault('annotations', [])
    _check_entries(where, 'images', content['images'], ('id', 'file_name', 'width', 'height'))
    _check_entries(where, 'categories', content['categories'], ('id', 'name'))
    fields = ('id', 'image_id', 'category_id')  # without them not even pycocotools reads the file
    _check_entries(where, 'annotations', content['annotations'], fields)
    for key in ('images', 'categories', 'annotations'):
        _check_types(where, key, content[key])
        check_unique(where, f'{key} ids', (entry['id'] for entry in content[key]))
    check_unique(where, 'category names', (entry['name'] for entry in content['categories']))
    if bad := [
        entry['file_name']
        for entry in content['images']
        if not _is_positive(entry['width']) or not _is_positive(entry['height'])
    ]:
        raise ValueError(
            f'{where}: {len(bad)} images have no positive width and height: {first_of(bad)}'
        )
    return content


def annotation_problem(annotation: dict, images: dict, masks: bool) -> str | None:
    """Return why an object cannot be trained on, or None.

    Args:
        annotation: an entry of the file's ``annotations``.
        images: the file's images by id.
        masks: whether its mask is needed as well as its box.
    """
    image = images.get(annotation['image_id'])
    if image is None:
        return 'an image_id that no image has'
    if annotation.get('ignore'):  # mmdet skips it before it looks any further
        return None
    if 'bbox' not in annotation:
        return 'no bbox'
    box = annotation['bbox']
    if not isinstance(box, list) or len(box) != 4 or not _are_finite(box):
        return 'a bbox that is not four finite numbers [x, y, width, height]'
    if _reaches_far(box, image):  # float32 would make it infinite
        return 'a bbox that reaches far beyond the image'
    x, y, width, height = box
    if width < 0 or height < 0:
        return 'a bbox of negative width or height'
    if width < 1 or height < 1:
        return 'a bbox less than 1 pixel wide or high'
    if min(x + width, image['width']) <= max(x, 0) or min(y + height, image['height']) <= max(y, 0):
        return 'a bbox outside the image'
    if 'area' not in annotation:
        return 'no area'
    if not _is_positive(annotation['area']):
        return 'an area that is not a positive number'
    if not masks:
        return None
    if problem := segmentation_problem(annotation, image):
        return problem
    mask = annotation['segmentation']
    if isinstance(mask, list) and not any(len(p) >= 6 and len(p) % 2 == 0 for p in mask):
        return 'no polygon of 3 points or more'  # mmdet's rule
    return None


def segmentation_problem(annotation: dict, image: dict) -> str | None:
    """Return the reason for which pycocotools cannot make a mask of an annotation, or None.

    pycocotools takes all memory for a polygon with NaN or coordinates of 1e12, and writes beyond the
    mask for run lengths that do not fill the image.
    """
    segmentation = annotation.get('segmentation')
    if not segmentation:
        return NO_MASK
    if isinstance(segmentation, dict):
        return _rle_problem(segmentation, [image['height'], image['width']])
    if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
        return 'a segmentation that is not a list of polygons [[x1, y1, x2, y2, ...], ...]'
    if not all(map(_are_finite, segmentation)):
        return 'a polygon with something else than finite numbers'
    if any(_reaches_far(polygon, image) for polygon in segmentation):
        return 'a polygon that reaches far beyond the image'
    return None


def _rle_problem(rle: dict, size: list[int]) -> str | None:
    counts = rle.get('counts')
    if rle.get('size') != size:
        return 'run lengths (RLE) whose size is not [height, width] of the image'
    if isinstance(counts, str):
        counts = _decode_counts(counts)
    if not isinstance(counts, list) or not all(isinstance(n, int) and n >= 0 for n in counts):
        return 'run lengths (RLE) whose counts are not numbers of pixels'
    if sum(counts) != size[0] * size[1]:
        return 'run lengths (RLE) that do not add up to the image'
    return None


def _decode_counts(text: str) -> list[int] | None:
    """Decode COCO's compressed run lengths; None where they are damaged.

    A number has 5 bits a character, the least significant first, and is the difference to the last but
    one.
    """
    codes = np.frombuffer(text.encode('utf-8'), np.uint8).astype(np.int64) - 48
    last = codes & 32 == 0  # character of its number
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        return None
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff(starts, append=len(codes))
    if lengths.max() > 7:  # beyond 32 bits
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    counts = np.add.reduceat((codes & 31) << shifts, starts)
    is_negative = codes[last] & 16 != 0
    counts[is_negative] -= 1 << (5 * lengths[is_negative])
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts.tolist()


def _reaches_far(numbers: list, image: dict) -> bool:
    """Whether coordinates lie far beyond the image: pycocotools would take all memory."""
    limit = 10 * (image['width'] + image['height'])
    return any(abs(number) > limit for number in numbers)


def _check_entries(where: str, key: str, entries: list, fields: tuple[str, ...]) -> None:
    for number, entry in enumerate(entries):
        lacking = [name for name in fields if not isinstance(entry, dict) or name not in entry]
        if lacking:
            raise ValueError(
                f'{where}: {key}[{number}] is {json.dumps(entry)[:200]} and has no '
                f'{", ".join(lacking)}; each of the {key} needs {", ".join(fields)}'
            )


def _check_types(where: str, key: str, entries: list[dict]) -> None:
    """Refuse other types than those of COCO: a text such as "0" is taken for true."""
    for number, entry in enumerate(entries):
        for name, (kinds, expected) in _TYPES.items():
            value = entry.get(name)
            if name in entry and (
                type(value) not in kinds or (bool in kinds and value not in (0, 1))
            ):
                raise ValueError(
                    f'{where}: {key}[{number}].{name} is {json.dumps(value)[:80]} '
                    f'({type(value).__name__}), expected {expected}'
                )


def check_unique(where: str, what: str, values: Iterable[Hashable]) -> None:
    """Raise ValueError if a value occurs more than once."""
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(
            f'{where}: {len(twice)} {what} are given more than once: {first_of(twice)}; '
            'each must be unique (renumber merged files)'
        )


def _are_finite(numbers: list) -> bool:
    try:
        return math.isfinite(sum(numbers))  # NaN and infinity survive a sum
    except (TypeError, OverflowError):  # other types; an integer of 400 digits
        return False


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 < value < math.inf
