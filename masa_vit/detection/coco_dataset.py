"""mmdet's COCO dataset with checks before training."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.fileio import get_local_path
from mmengine.logging import print_log

from masa_vit.detection.coco_json import LAYOUT, NO_MASK, annotation_problem, read_coco
from masa_vit.utils.images import UnreadableImageError, read_image, read_size
from masa_vit.utils.messages import first_of

__all__ = ['CheckedCocoDataset', 'CheckedCocoMetric']

_SIZES = 2000  # images whose size is compared at the start; all are when they are loaded


def make_coco(content: dict) -> COCO:
    """Index the content of `read_coco` by pycocotools."""
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs
    return coco


@METRICS.register_module()
class CheckedCocoMetric(CocoMetric):
    """`mmdet.evaluation.CocoMetric`, whose annotation file is read and checked by `read_coco`.

    Args:
        ann_file: see `mmdet.evaluation.CocoMetric`.
        kwargs: see `mmdet.evaluation.CocoMetric`, save `sort_categories`.
    """

    def __init__(self, ann_file: str | None = None, **kwargs: Any) -> None:
        super().__init__(ann_file=None, **kwargs)
        if ann_file is not None:
            with get_local_path(ann_file, backend_args=self.backend_args) as path:
                content = read_coco(path, with_annotations=not self.format_only)
            if any(annotation['id'] == 0 for annotation in content['annotations']):
                # pycocotools takes the id 0 for an object that was not found
                for number, annotation in enumerate(content['annotations'], 1):
                    annotation['id'] = number
            self._coco_api = make_coco(content)


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """`mmdet.datasets.CocoDataset` for unchecked data.

    On good data it gives the same samples. It refuses an annotation file that is missing, broken or
    without the categories that ``metainfo['classes']`` names, and images that do not exist. Labels
    are the positions in ``classes``, independent of the order of the file's categories; mmdet itself
    takes the file's order, which would exchange the names.

    Objects that cannot be trained on are left out: boxes that are empty, outside the image or not
    of finite numbers, ids of no image or category, and, if the pipeline loads masks
    (``LoadAnnotations(with_mask=True)``), masks that are missing or broken. One warning counts
    them. Crowds (``iscrowd``) are kept as they are.

    Args:
        args: see `mmdet.datasets.CocoDataset`.
        on_bad_annotation: ``'warn'``, or ``'raise'`` to refuse a file with such objects.
        kwargs: see `mmdet.datasets.CocoDataset`.

    Raises:
        FileNotFoundError: if the annotation file or images are missing. Images are looked for only
            where they are read from a local disk.
        ValueError: if the file does not fit, or leaves nothing to train on.
        UnreadableImageError: from ``dataset[i]``, with the file's name.
    """

    def __init__(self, *args: Any, on_bad_annotation: str = 'warn', **kwargs: Any):
        if on_bad_annotation not in ('warn', 'raise'):
            raise ValueError(
                f"on_bad_annotation expects 'warn' or 'raise', got {on_bad_annotation!r}"
            )
        self.on_bad_annotation = on_bad_annotation
        super().__init__(*args, **kwargs)

    @classmethod
    def _load_metainfo(cls, metainfo: Any = None) -> dict:
        loaded = super()._load_metainfo(metainfo)
        _check_classes(loaded.get('classes'))
        return loaded

    def COCOAPI(self, path: str) -> COCO:
        """Read the file for CocoDataset, without unusable annotations."""
        if 'img' not in self.data_prefix:
            raise ValueError(
                f'data_prefix={self.data_prefix} has no img; expected the folder of the images, '
                "below data_root, as in data_prefix=dict(img='train2017/')"
            )
        content = self.read_content(path)
        names = {category['id']: category['name'] for category in content['categories']}
        self._check_categories(list(names.values()))
        ids = {name: id_ for id_, name in names.items()}
        # CocoDataset numbers the classes in the order that it finds here
        content['categories'] = [
            dict(id=ids[name], name=name) for name in self._metainfo['classes']
        ]
        content['annotations'] = self._usable(content, names)
        for image in content['images']:
            image['file_name'] = self._with_slashes(image['file_name'])
        return make_coco(content)

    def read_content(self, path: str) -> dict[str, Any]:
        """Read lists of images, categories and annotations, with the keys of COCO's format."""
        return read_coco(path, with_annotations=not self.test_mode)

    def _with_slashes(self, name: str) -> str:
        """The path of an image in a file that was written on Windows."""
        if '\\' not in name or os.path.exists(os.path.join(self.data_prefix['img'], name)):
            return name
        return name.replace('\\', '/')

    def _check_categories(self, found: list[str]) -> None:
        classes = list(self._metainfo['classes'])
        where = os.path.abspath(self.ann_file)
        listed = f'metainfo=dict(classes=({", ".join(map(repr, found))},))'
        if not set(classes) & set(found):
            raise ValueError(
                f'{where} has none of the {len(classes)} classes {first_of(classes)}. '
                f'Its categories are: {", ".join(map(str, found)) or "(none)"}.\n'
                f"Set them in the config's datasets, for training and validation alike: {listed}; "
                f'and num_classes={len(found)} in the heads of the model.'
            )
        if missing := [name for name in classes if name not in found]:
            raise ValueError(
                f'{where} has no category {first_of(missing)}, which metainfo["classes"] names. '
                f'Its categories are: {", ".join(map(str, found))}.\n'
                'Remove these names from the classes (and num_classes in the heads of the model), '
                'or add them to the categories of the file.'
            )
        self._check_order(found)

    def _check_order(self, found: Sequence[str]) -> None:
        classes = list(self._metainfo['classes'])
        where = os.path.abspath(self.ann_file)
        in_file_order = [name for name in found if name in classes]
        if self.test_mode and in_file_order != classes:
            raise ValueError(
                f"{where} has the classes in another order than metainfo['classes'], which mmdet's "
                'CocoMetric cannot evaluate: it takes the order of the file.\n'
                "Set in the config's datasets, for training and validation alike: "
                f'metainfo=dict(classes=({", ".join(map(repr, in_file_order))},)). '
                'The order in the file to train on does not matter.'
            )

    def _usable(self, content: dict, names: dict) -> list[dict]:
        """Return the usable annotations of the classes, and report the rest."""
        images = {image['id']: image for image in content['images']}
        masks = any(getattr(step, 'with_mask', False) for step in self.pipeline.transforms)
        classes = set(self._metainfo['classes'])
        kept: list[dict] = []
        left_out: Counter[str] = Counter()
        bad: defaultdict[str, list[str]] = defaultdict(list)
        thin = 0
        for annotation in content['annotations']:
            name = names.get(annotation['category_id'])
            if name is not None and name not in classes:
                left_out[name] += 1
                continue
            problem = (
                'a category_id that no category has'
                if name is None
                else annotation_problem(annotation, images, masks)
            )
            if problem is None:
                kept.append(annotation)
                thin += min(annotation['bbox'][2:]) <= 1 if 'bbox' in annotation else 0
            else:
                image = images.get(annotation['image_id'], {'file_name': 'none'})
                bad[problem].append(f'annotation {annotation["id"]}, image {image["file_name"]}')
        if thin:
            print_log(
                f'{os.path.abspath(self.ann_file)}: {thin} boxes are 1 pixel wide or high; they are '
                'kept. Boxes are [x, y, width, height] in pixels.',
                'current',
                logging.WARNING,
            )
        self._report(bad, left_out, len(kept))
        return kept

    def _report(self, bad: dict[str, list[str]], left_out: Counter[str], kept: int) -> None:
        where = os.path.abspath(self.ann_file)
        if left_out:
            counts = ', '.join(f'{name} ({count})' for name, count in sorted(left_out.items()))
            print_log(
                f"{where}: metainfo['classes'] leaves out these categories (annotations): {counts}",
                'current',
                logging.INFO,
            )
        if not bad:
            return
        total = sum(map(len, bad.values()))
        text = f'{where}: {total} of {total + kept} annotations cannot be used:' + ''.join(
            f'\n  {len(cases)} with {problem} ({"; ".join(cases[:3])}{"; ..." * (len(cases) > 3)})'
            for problem, cases in bad.items()
        )
        if self.on_bad_annotation == 'raise' or (not kept and not self.test_mode):
            advice = 'Fix the file or remove these annotations from it.'
            if not kept and list(bad) == [NO_MASK]:
                advice = (
                    'For boxes without masks choose a detector without a mask head, such as '
                    'masa_vit::det/faster_rcnn_vit_masa_custom.py (docs/detection_data.md).'
                )
            raise ValueError(f'{text}\n{advice}')
        print_log(
            f"{text}\nThey are left out; on_bad_annotation='raise' in the dataset's config would "
            'stop here.',
            'current',
            logging.WARNING,
        )

    def filter_data(self) -> list[dict]:
        """mmdet's filter; refuses to leave nothing, or images that do not exist."""
        kept = super().filter_data()
        where = os.path.abspath(self.ann_file)
        if not kept:
            empty = sum(not image['instances'] for image in self.data_list)
            raise ValueError(
                f'{where} leaves no image to {"test" if self.test_mode else "train"} on: it has '
                f'{len(self.data_list)} images, {empty} of them without an object of '
                f"metainfo['classes'] ({first_of(self._metainfo['classes'])}), and filter_cfg is "
                f'{self.filter_cfg}.'
            )
        if self._is_local():
            missing = _missing_files([image['img_path'] for image in kept])
            if missing:
                raise FileNotFoundError(
                    f'{len(missing)} of the {len(kept)} images that {where} lists do not exist: '
                    f'{first_of([os.path.abspath(path) for path in missing])}.\n'
                    f'file_name in the file is relative to data_prefix.img. {LAYOUT}'
                )
            self._check_sizes(kept)
        return kept

    def _check_sizes(self, images: list[dict]) -> None:
        """Compare width and height with the headers of the image files."""
        wrong = []
        for image in images[:: max(1, len(images) // _SIZES)]:
            try:
                width, height = read_size(image['img_path'])
            except UnreadableImageError:
                continue  # refused where it is loaded
            if (width, height) != (image['width'], image['height']):
                listed = f'{image["width"]}x{image["height"]}'
                wrong.append(f'{image["img_path"]} is {width}x{height}, listed as {listed}')
        if wrong:
            raise ValueError(
                f'{os.path.abspath(self.ann_file)}: {len(wrong)} images have another size than their '
                f'files: {first_of(wrong, 3)}. Correct width and height, or use '
                'the images that were annotated (images are turned as their EXIF orientation says).'
            )

    def _is_local(self) -> bool:
        steps = [getattr(step, 'backend_args', None) for step in self.pipeline.transforms]
        return '://' not in self.data_prefix['img'] and all(
            (args or {}).get('backend', 'local') == 'local' for args in (self.backend_args, *steps)
        )

    def prepare_data(self, idx: int) -> Any:
        """The sample from the pipeline."""
        try:
            return super().prepare_data(idx)
        except Exception as error:
            if self._is_local():
                _explain(error, self.get_data_info(idx)['img_path'], os.path.abspath(self.ann_file))
            raise


def _explain(error: Exception, path: str, ann_file: str) -> None:
    """Raise UnreadableImageError, with a remedy, if the image made the pipeline fail."""
    advice = f'Fix or replace the file, or remove it from the images in {ann_file}.'
    try:
        read_image(path)
    except UnreadableImageError as unreadable:
        raise UnreadableImageError(f'{unreadable}\n{advice}') from error
    if isinstance(error, UnreadableImageError):
        raise UnreadableImageError(f'{error}\n{advice}') from error


def _check_classes(classes: Any) -> None:
    if isinstance(classes, str):
        raise ValueError(
            f"metainfo['classes'] is the string {classes!r}, neither names nor a file of names; "
            f'a single class needs a comma: classes=({classes!r},)'
        )
    if not isinstance(classes, Sequence) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"metainfo['classes'] expects a list of names, got {classes!r}")
    if not classes:
        raise ValueError("metainfo['classes'] is empty; expected the names of the categories")
    if twice := [name for name, count in Counter(classes).items() if count > 1]:
        raise ValueError(f"metainfo['classes'] has names more than once: {first_of(twice)}")


def _missing_files(paths: list[str]) -> list[str]:
    """Return the paths without a file; folders are listed once, which is fast."""
    by_folder: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        by_folder[os.path.dirname(path)].append(path)
    missing = []
    for folder, files in by_folder.items():
        if not os.path.isdir(folder or '.'):
            missing += files
            continue
        with os.scandir(folder or '.') as entries:
            found = {entry.name for entry in entries}
        # a name may also differ from the folder's in case or Unicode form, and yet open
        missing += [p for p in files if os.path.basename(p) not in found and not os.path.isfile(p)]
    return missing
