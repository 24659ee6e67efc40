"""Check the classes and annotations of a detection run before the first step."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from mmdet.evaluation import CocoMetric
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from masa_vit.detection.coco_json import segmentation_problem
from masa_vit.training.wrapped_models import unwrap
from masa_vit.utils.messages import first_of

__all__ = ['DetClassesCheckHook']

UNRELATED = ('backbone', 'rpn_head', 'semantic_head')
"""Parts of a detector whose ``num_classes`` is not the number of classes of objects."""


@HOOKS.register_module()
class DetClassesCheckHook(Hook):
    """Refuse to start when heads, datasets and the file of the evaluation do not fit.

    - ``num_classes`` of a head is not the number of ``metainfo['classes']``;
    - training and validation have different classes;
    - mmdet's CocoMetric has an annotation file (``val_evaluator.ann_file``) of other images or
      classes, or one that its evaluation cannot take, which would show after the first epoch only.
    """

    def __init__(self) -> None:
        self._evaluators: set[str] = set()  # those already checked

    def before_train(self, runner: Any) -> None:
        """Compare heads, training and validation classes; check the evaluation's file."""
        train = _classes(runner.train_dataloader.dataset, 'training')
        _check_heads(runner, 'training', train)
        if runner.val_loop is not None:
            val = _classes(runner.val_dataloader.dataset, 'validation')
            if train is not None and val is not None and train != val:
                raise ValueError(_difference(train, val))
            self.before_val(runner)

    def before_val(self, runner: Any) -> None:
        """Compare heads and validation classes; check the evaluation's file."""
        self._check_evaluation(runner, 'val', runner.val_dataloader, runner.val_evaluator)

    def before_test(self, runner: Any) -> None:
        """Compare heads and test classes; check the evaluation's file."""
        self._check_evaluation(runner, 'test', runner.test_dataloader, runner.test_evaluator)

    def _check_evaluation(self, runner: Any, mode: str, loader: Any, evaluator: Any) -> None:
        split = {'val': 'validation', 'test': 'test'}[mode]
        classes = _classes(loader.dataset, split)
        _check_heads(runner, split, classes)
        if mode in self._evaluators:  # validation comes after every epoch
            return
        self._evaluators.add(mode)
        for metric in evaluator.metrics:
            coco = metric._coco_api if isinstance(metric, CocoMetric) else None
            if coco is None or classes is None or metric.format_only:
                continue
            try:
                _check_categories(coco, classes)
                _check_images(runner, coco, loader.dataset, split)
            except ValueError as error:
                raise ValueError(
                    f'the annotation file of {mode}_evaluator does not fit: {error}\n'
                    f'{mode}_evaluator.ann_file should be the ann_file of the {split} data.'
                ) from error
            if problem := _annotation_problem(coco, classes, masks='segm' in metric.metrics):
                raise ValueError(
                    f'{mode}_evaluator cannot evaluate: in its annotation file {problem}.\n'
                    "Fix the file; boxes only, metric='bbox', need no segmentation."
                )


def _classes(dataset: Any, split: str) -> list[str] | None:
    metainfo = getattr(dataset, 'metainfo', {})
    if isinstance(metainfo, list):  # mmdet's ConcatDataset of datasets that differ
        classes = [list(part.get('classes') or ()) for part in metainfo]
        if any(names != classes[0] for names in classes):
            listed = '; '.join(first_of(names) for names in classes)
            raise ValueError(
                f'the {split} data joins datasets with different classes ({listed}): class indices '
                "would not match.\nGive all of them the same metainfo['classes']."
            )
        metainfo = metainfo[0]
    names = metainfo.get('classes')
    if isinstance(names, str):
        raise ValueError(
            f"metainfo['classes'] of the {split} data is the string {names!r}; a single class needs "
            f'a comma: classes=({names!r},)'
        )
    return None if names is None else list(names)


def _difference(train: list[str], val: list[str]) -> str:
    where = '; '.join(
        f'only in {split}: {first_of(names)}'
        for split, names in (
            ('training', [name for name in train if name not in val]),
            ('validation', [name for name in val if name not in train]),
        )
        if names
    )
    return (
        f'training and validation data have different classes ({len(train)} and {len(val)}; '
        f'{where or "the same names in another order"}): class indices would not match.\n'
        "Give both the same metainfo['classes'] in the config."
    )


def _check_heads(runner: Any, split: str, classes: Sequence[str] | None) -> None:
    if classes is None:
        return
    model = unwrap(runner.model)
    wrong: dict[str, int] = {}
    for name, module in model.named_modules():
        parts = name.split('.')
        found = getattr(module, 'num_classes', None)
        if not isinstance(found, int) or found == len(classes):
            continue
        if not any(part in UNRELATED or part.startswith('loss') for part in parts):
            wrong[_config_key(runner.cfg.get('model'), parts)] = found
    if wrong:
        raise ValueError(
            f'the {split} data has {len(classes)} classes ({first_of(classes)}), but the model has '
            + ', '.join(f'{key}={found}' for key, found in wrong.items())
            + '.\nSet them in the config, or: --cfg-options '
            + ' '.join(f'{key}={len(classes)}' for key in wrong)
            + "; or correct metainfo['classes'] of the data."
        )


def _config_key(config: Any, parts: Sequence[str]) -> str:
    """Where a module's num_classes is set: the stages of a cascade may share one config."""
    keys = []
    for part in parts:
        if part.isdigit() and config is not None and not isinstance(config, (list, tuple)):
            continue
        keys.append(part)
        if isinstance(config, (list, tuple)):
            config = config[int(part)]
        elif config is not None:
            config = config.get(part)
    return '.'.join(['model', *filter(None, keys), 'num_classes'])


def _check_categories(coco: Any, classes: Sequence[str]) -> None:
    names = [category['name'] for category in coco.dataset['categories']]
    if [name for name in names if name in classes] != list(classes):
        raise ValueError(
            f'its categories are {first_of(names)}; '
            f"metainfo['classes'] names {first_of(classes)}, and the order must be the same"
        )


def _check_images(runner: Any, coco: Any, dataset: Any, split: str) -> None:
    if not hasattr(dataset, 'get_data_info'):
        return
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    paths = {info['img_id']: info['img_path'] for info in infos}
    names = {id_: image['file_name'] for id_, image in coco.imgs.items()}
    # ids are not enough: in most files they count from 1
    if unknown := [
        path
        for id_, path in paths.items()
        if os.path.basename(path) != os.path.basename(names.get(id_, ''))
    ]:
        raise ValueError(
            f'{len(unknown)} of the {len(paths)} {split} images are not in it, or not with the same '
            f'id ({first_of(unknown)})'
        )
    if len(paths) < len(names):
        runner.logger.log(
            logging.WARNING,
            f'{split} runs on {len(paths)} of the {len(names)} images of its annotation file; '
            "mmdet's CocoMetric counts the objects in the others as not found",
        )


def _annotation_problem(coco: Any, classes: Sequence[str], masks: bool) -> str | None:
    """The first annotation at which COCO's evaluation would end with an error."""
    wanted = set(coco.getCatIds(catNms=list(classes)))
    for annotation in coco.dataset.get('annotations', []):
        image = coco.imgs.get(annotation['image_id'])
        if image is None or annotation['category_id'] not in wanted:
            continue
        lacking = [key for key in ('bbox', 'area', 'iscrowd') if key not in annotation]
        problem = f'no {", ".join(lacking)}' if lacking else None
        if problem is None and masks:
            problem = segmentation_problem(annotation, image) or _mask_problem(coco, annotation)
        if problem is not None:
            return f'annotation {annotation["id"]} of the image {image["file_name"]} has {problem}'
    return None


def _mask_problem(coco: Any, annotation: dict) -> str | None:
    try:
        coco.annToRLE(annotation)
    except Exception as error:  # of many kinds, as for a first polygon of two points
        return f'a segmentation that pycocotools cannot read ({error})'
    return None
