"""The tiny COCO data set of the tests in Pascal VOC's format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

from tiny_detector import CLASSES, IDS


def write_voc(coco_root: Path, root: Path) -> Path:
    """root/{JPEGImages,Annotations,ImageSets/Main}; boxes in whole pixels, the crowd is difficult."""
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    names = dict(zip(IDS, CLASSES, strict=True))
    for split in ('train', 'val'):
        content = json.loads((coco_root / f'annotations/instances_{split}2017.json').read_text())
        stems = []
        for image in content['images']:
            stem = f'{split}_{image["id"]}'
            stems.append(stem)
            shutil.copy(
                coco_root / f'{split}2017' / image['file_name'], root / f'JPEGImages/{stem}.jpg'
            )
            tree = ElementTree.Element('annotation')
            _add(tree, filename=f'{stem}.jpg')
            size = ElementTree.SubElement(tree, 'size')
            _add(size, width=image['width'], height=image['height'], depth=3)
            for annotation in content['annotations']:
                if annotation['image_id'] == image['id']:
                    x, y, width, height = map(int, annotation['bbox'])
                    each = ElementTree.SubElement(tree, 'object')
                    _add(
                        each, name=names[annotation['category_id']], difficult=annotation['iscrowd']
                    )
                    box = ElementTree.SubElement(each, 'bndbox')
                    _add(box, xmin=x + 1, ymin=y + 1, xmax=x + width + 1, ymax=y + height + 1)
            ElementTree.ElementTree(tree).write(root / f'Annotations/{stem}.xml')
        (root / f'ImageSets/Main/{split}.txt').write_text('\n'.join(stems) + '\n')
    return root


def _add(parent: ElementTree.Element, **texts: object) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = str(text)
