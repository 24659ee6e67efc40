"""Read Pascal VOC's XML files as the content of a file in COCO format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from masa_vit.detection.coco_json import check_unique
from masa_vit.utils.images import read_size
from masa_vit.utils.messages import first_of

__all__ = ['read_voc']

_LAYOUT = (
    'Expected data_root/ann_file, a list of names, as in DIR/ImageSets/Main/train.txt, and for each '
    'name data_root/data_prefix.xml/NAME.xml and data_root/data_prefix.img/NAME.jpg, as in '
    'DIR/Annotations/ and DIR/JPEGImages/.\n'
    'Set data_root, ann_file and data_prefix in the config, or: --cfg-options '
    'train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR'
)


def read_voc(list_file: str, xml_folder: str, image_folder: str) -> dict[str, Any]:
    """Read the XML files of the names in a list.

    Boxes are those of mmdet's XMLDataset: pixels are counted from 1 in the files, from 0 here. Objects
    marked as difficult become crowds, which training and evaluation leave out.

    Args:
        list_file: A name in each line.
        xml_folder: Folder of ``NAME.xml``.
        image_folder: Folder of the images, ``NAME`` with the suffix of the file name in the XML.

    Returns:
        Lists of images, categories (all names, sorted) and annotations.

    Raises:
        FileNotFoundError: If the list or XML files are missing.
        ValueError: If the list is empty or has a name twice, or a file is not VOC's XML.
    """
    where = os.path.abspath(list_file)
    if not os.path.isfile(list_file):
        raise FileNotFoundError(f'no list of images {where}.\n{_LAYOUT}')
    lines = Path(list_file).read_text(encoding='utf-8-sig').splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f'{where} is empty; expected a name in each line')
    check_unique(where, 'names', names)
    files = [Path(xml_folder, f'{name}.xml') for name in names]
    if missing := [str(file.absolute()) for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f'{len(missing)} of the {len(files)} XML files that {where} lists do not exist: '
            f'{first_of(missing)}.\n{_LAYOUT}'
        )
    images, annotations = [], []
    for index, (name, file) in enumerate(zip(names, files, strict=True)):
        image, objects = _read_file(name, file, image_folder)
        images.append({'id': index, **image})
        annotations += [{'image_id': index, **each} for each in objects]
    found = sorted({annotation['name'] for annotation in annotations})
    for number, annotation in enumerate(annotations, 1):
        annotation.update(id=number, category_id=found.index(annotation.pop('name')))
    categories = [{'id': index, 'name': name} for index, name in enumerate(found)]
    return {'images': images, 'categories': categories, 'annotations': annotations}


def _read_file(
    name: str, file: Path, image_folder: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the image (file name, width, height) and the objects of an XML file."""
    try:
        root = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f'{file.absolute()} is not XML, or is truncated: {error}') from error
    if root.tag != 'annotation':
        raise ValueError(
            f"{file.absolute()} is not in Pascal VOC's format: its root is <{root.tag}>, expected "
            '<annotation>'
        )
    given = (root.findtext('filename') or '').strip()
    image: dict[str, Any] = {'file_name': name + (Path(given).suffix or '.jpg')}
    width, height = (_number(root, f'size/{side}') or 0 for side in ('width', 'height'))
    if not (width > 0 and height > 0):  # some tools leave it out, or write 0
        width, height = read_size(os.path.join(image_folder, image['file_name']))
    image.update(width=int(width), height=int(height))
    objects = []
    for each in root.iterfind('object'):
        label = (each.findtext('name') or '').strip()
        if not label:
            raise ValueError(f'{file.absolute()}: an object without a <name>')
        corners = [_number(each, f'bndbox/{corner}') for corner in ('xmin', 'ymin', 'xmax', 'ymax')]
        objects.append(
            {
                'name': label,
                'iscrowd': int(_number(each, 'difficult') == 1),
                **_box(corners),
            }
        )
    return image, objects


def _number(element: ElementTree.Element, path: str) -> float | None:
    try:
        return float(element.findtext(path) or '')
    except ValueError:
        return None


def _box(corners: list[float | None]) -> dict[str, Any]:
    """Return bbox [x, y, width, height] and area; of a box without four numbers, None and 1."""
    if None in corners:
        return {'bbox': None, 'area': 1}
    xmin, ymin, xmax, ymax = (corner or 0.0 for corner in corners)
    width, height = xmax - xmin, ymax - ymin
    return {'bbox': [xmin - 1, ymin - 1, width, height], 'area': abs(width * height)}
