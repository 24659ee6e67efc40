"""Pascal VOC's format with the checks of `CheckedCocoDataset`, and AP by class."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

from mmdet.evaluation import VOCMetric, eval_map
from mmdet.evaluation.functional import mean_ap
from mmdet.registry import DATASETS, METRICS
from mmengine.logging import MMLogger

from masa_vit.detection.coco_dataset import CheckedCocoDataset
from masa_vit.detection.voc_xml import read_voc

# mmdet forks processes, which can wait forever for locks that other threads of this one held
mean_ap.Pool = ThreadPool

__all__ = ['CheckedXMLDataset', 'ClasswiseVOCMetric']


@DATASETS.register_module()
class CheckedXMLDataset(CheckedCocoDataset):
    """Images with Pascal VOC's XML files, with the checks of `CheckedCocoDataset`.

    On good data it gives the boxes of mmdet's `XMLDataset`. A class without an object in the training
    data is refused: its name is probably misspelled.

    Args:
        args: See `CheckedCocoDataset`; `ann_file` is a list of names, as `ImageSets/Main/train.txt`.
        data_prefix: Folders of images and XML files, by default
            ``dict(img='JPEGImages/', xml='Annotations/')``.
        kwargs: See `CheckedCocoDataset`.

    Raises:
        FileNotFoundError: If the list, an XML file or an image is missing.
        ValueError: If a file is broken, or leaves nothing to train on.
    """

    def __init__(
        self, *args: Any, data_prefix: dict[str, str] | None = None, **kwargs: Any
    ) -> None:
        folders = {'img': 'JPEGImages/', 'xml': 'Annotations/', **(data_prefix or {})}
        super().__init__(*args, data_prefix=folders, **kwargs)

    def read_content(self, path: str) -> dict[str, Any]:
        """Read the XML files of a list, as the content of a file in COCO format."""
        content = read_voc(path, self.data_prefix['xml'], self.data_prefix['img'])
        found = [category['name'] for category in content['categories']]
        classes = [*self._metainfo['classes']]
        if self.test_mode and set(found) & set(classes):  # a few images need not have all classes
            absent = [name for name in classes if name not in found]
            content['categories'] += [
                {'id': len(found) + index, 'name': name} for index, name in enumerate(absent)
            ]
        return content

    def _check_order(self, found: Sequence[str]) -> None:
        """The categories of XML files have no order."""


@METRICS.register_module()
class ClasswiseVOCMetric(VOCMetric):
    """`mmdet.evaluation.VOCMetric`, with the AP of each class, e.g. ``pascal_voc/AP50_cat``."""

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the mean AP, that of each IoU threshold, and that of each class."""
        if self.metric != 'mAP':
            return super().compute_metrics(results)
        truths, predictions = zip(*results, strict=True)
        classes = self.dataset_meta['classes']
        metrics = {'mAP': 0.0}
        for threshold in self.iou_thrs:
            mean, of_class = eval_map(
                predictions,
                truths,
                scale_ranges=self.scale_ranges,
                iou_thr=threshold,
                dataset=classes,
                logger=MMLogger.get_current_instance(),
                eval_mode=self.eval_mode,
                use_legacy_coordinate=True,  # as VOCMetric
            )
            metrics['mAP'] += float(mean) / len(self.iou_thrs)
            key = f'AP{round(threshold * 100):02d}'
            metrics[key] = round(float(mean), 3)
            for name, found in zip(classes, of_class, strict=True):
                metrics[f'{key}_{name}'] = round(float(found['ap']), 3)
        return metrics
