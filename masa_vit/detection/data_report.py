"""Describe the boxes of a detector's data before training, and warn of those that it cannot see."""

from __future__ import annotations

import colorsys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn
from torchvision.utils import draw_bounding_boxes, make_grid, save_image

from masa_vit.training.wrapped_models import unwrap

__all__ = ['DataReport', 'DataReportHook', 'describe_data', 'find_scales', 'save_sheet']


@dataclass
class ClassBoxes:
    """The boxes of a class."""

    name: str
    objects: int
    images: int
    sides: np.ndarray
    """Square root of the area of each box in pixels of the file."""
    resized: np.ndarray
    """The same of the sampled images as the model gets them."""


@dataclass
class DataReport:
    """The boxes of a data set."""

    images: int
    without_objects: int
    duplicates: int
    """Boxes that occur again in their image, with the same class."""
    thin: int
    """Boxes of at most 1 pixel in width or height."""
    sampled: int
    classes: list[ClassBoxes]

    def warnings(self, token: float | None, anchor: float | None) -> list[str]:
        """Return a sentence for each finding.

        Args:
            token: Side of the patches of the backbone in pixels; None: not known.
            anchor: Side of the smallest anchor in pixels; None: no anchors.
        """
        found = []
        for each in self.classes:
            if not len(each.resized):
                continue
            median = float(np.median(each.resized))
            below = [
                f'{what} of {size:.0f}'
                for what, size in (('one token', token), ('the smallest anchor', anchor))
                if size and median < size
            ]
            if below:
                found.append(
                    f'{each.name}: median side {median:.0f} px after resizing, below '
                    f'{" and ".join(below)}'
                )
        if self.duplicates:
            found.append(f'{self.duplicates} boxes occur twice in an image, with the same class')
        if self.thin:
            found.append(f'{self.thin} boxes are at most 1 pixel wide or high')
        return found


def describe_data(dataset: Any, num_samples: int = 500) -> DataReport:
    """Count the objects of a data set, and measure its boxes.

    Args:
        dataset: Of mmdet, with `metainfo['classes']`; repetitions around it are left out.
        num_samples: Images to load, evenly spread, for the sizes after resizing.
    """
    dataset = _innermost(dataset)
    classes = list(dataset.metainfo['classes'])
    sides: list[list[float]] = [[] for _ in classes]
    images_of: Counter[int] = Counter()
    without = duplicates = thin = 0
    for index in range(len(dataset)):
        instances = [i for i in dataset.get_data_info(index)['instances'] if not i['ignore_flag']]
        boxes = [(each['bbox_label'], *each['bbox']) for each in instances]
        without += not boxes
        duplicates += len(boxes) - len(set(boxes))
        images_of.update({label for label, *_ in boxes})
        for label, x1, y1, x2, y2 in boxes:
            sides[label].append(((x2 - x1) * (y2 - y1)) ** 0.5)
            thin += min(x2 - x1, y2 - y1) <= 1
    resized: list[list[float]] = [[] for _ in classes]
    chosen = spread(len(dataset), num_samples)
    for index in chosen:
        sample = dataset[index]['data_samples'].gt_instances
        found = _areas(_boxes(sample)).sqrt().tolist()
        for label, side in zip(sample.labels.tolist(), found, strict=True):
            resized[label].append(side)
    return DataReport(
        images=len(dataset),
        without_objects=without,
        duplicates=duplicates,
        thin=thin,
        sampled=len(chosen),
        classes=[
            ClassBoxes(name, len(own), images_of[label], np.array(own), np.array(resized[label]))
            for label, (name, own) in enumerate(zip(classes, sides, strict=True))
        ],
    )


def find_scales(model: nn.Module) -> tuple[float | None, float | None]:
    """Return the sides in pixels of a token of the backbone, and of the smallest anchor."""
    patch = getattr(getattr(getattr(model, 'backbone', None), 'vit', None), 'patch_embed', None)
    token = None if patch is None else float(patch.patch_size[0])
    anchors = [
        anchor
        for module in model.modules()
        for anchor in getattr(getattr(module, 'prior_generator', None), 'base_anchors', ())
    ]
    areas = [float(_areas(anchor).min()) for anchor in anchors]
    return token, min(areas) ** 0.5 if areas else None


def save_sheet(dataset: Any, path: Path, count: int = 12) -> None:
    """Draw images as the model gets them, with boxes and names, into one picture.

    Args:
        dataset: Of mmdet.
        path: The file, .png or .jpg.
        count: Images, evenly spread.
    """
    dataset = _innermost(dataset)
    classes = list(dataset.metainfo['classes'])
    hues = [colorsys.hsv_to_rgb(i / len(classes), 0.9, 1.0) for i in range(len(classes))]
    colours = [tuple(int(255 * part) for part in hue) for hue in hues]
    drawn = []
    for index in spread(len(dataset), count):
        item = dataset[index]
        found = item['data_samples'].gt_instances
        labels = found.labels.tolist()
        image = item['inputs'].flip(0).contiguous()  # BGR to RGB
        drawn.append(
            draw_bounding_boxes(
                image,
                _boxes(found),
                labels=[classes[label] for label in labels],
                colors=[colours[label] for label in labels],
                width=2,
            )
            if labels
            else image
        )
    height, width = (max(image.shape[axis] for image in drawn) for axis in (1, 2))
    padded = [
        nn.functional.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))
        for image in drawn
    ]
    save_image(make_grid(torch.stack(padded).float() / 255, nrow=4), path)


def spread(total: int, count: int) -> list[int]:
    """Return at most `count` indices, evenly spread over `total`."""
    count = min(total, count)
    return [index * total // count for index in range(count)]


@HOOKS.register_module()
class DataReportHook(Hook):
    """Log the warnings of `DataReport` before training.

    Args:
        num_samples: Images to load for the sizes after resizing.
    """

    def __init__(self, num_samples: int = 128) -> None:
        self.num_samples = num_samples

    def before_train(self, runner: Any) -> None:
        """Look at the training data."""
        dataset = runner.train_dataloader.dataset
        if not is_main_process() or 'classes' not in getattr(dataset, 'metainfo', {}):
            return
        report = describe_data(dataset, self.num_samples)
        for text in report.warnings(*find_scales(unwrap(runner.model))):
            runner.logger.warning(f'training data: {text}')


def _innermost(dataset: Any) -> Any:
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    return dataset


def _boxes(instances: Any) -> Tensor:
    """Corners (n, 4)."""
    return getattr(instances.bboxes, 'tensor', instances.bboxes)


def _areas(corners: Tensor) -> Tensor:
    return (corners[:, 2:] - corners[:, :2]).clamp(min=0).prod(1)
