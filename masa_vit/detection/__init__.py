"""MASA backbones in MMDetection; importing this registers them with `mmdet.registry`.

Needs the ``det`` extra. Where mmcv has no compiled operators it puts those on torchvision in their
place.
"""

import contextlib
import io
import warnings

from masa_vit.detection import mmcv_ops, packages

packages.check()
mmcv_ops.install()

with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
    # packages that nothing here needs are missing, as mmdet prints and warns
    warnings.filterwarnings('ignore', 'faster_coco_eval is not installed')
    import mmdet.datasets
    import mmdet.evaluation  # noqa: F401

import masa_vit.training.checkpoint_files  # noqa: E402  (mmengine then reads checkpoints as data)
import masa_vit.utils.config_paths  # noqa: E402, F401  (for `_base_ = 'masa_vit::...'`)

# after the operators, which mmdet's modules look for when they are imported
from masa_vit.detection.attention import WindowedAttention  # noqa: E402
from masa_vit.detection.backbone import MasaViT  # noqa: E402
from masa_vit.detection.class_check import DetClassesCheckHook  # noqa: E402
from masa_vit.detection.coco_dataset import CheckedCocoDataset, CheckedCocoMetric  # noqa: E402
from masa_vit.detection.data_report import DataReportHook  # noqa: E402
from masa_vit.detection.image_loading import LoadImageFromFile  # noqa: E402
from masa_vit.detection.precision import Float32HeadsHook  # noqa: E402
from masa_vit.detection.simple_fpn import SimpleFPN  # noqa: E402
from masa_vit.detection.stride_check import StrideCheckHook  # noqa: E402
from masa_vit.detection.visualization import ValidationPicturesHook  # noqa: E402
from masa_vit.detection.voc_dataset import CheckedXMLDataset, ClasswiseVOCMetric  # noqa: E402

__all__ = [
    'CheckedCocoDataset',
    'CheckedCocoMetric',
    'CheckedXMLDataset',
    'ClasswiseVOCMetric',
    'DataReportHook',
    'DetClassesCheckHook',
    'Float32HeadsHook',
    'LoadImageFromFile',
    'MasaViT',
    'SimpleFPN',
    'StrideCheckHook',
    'ValidationPicturesHook',
    'WindowedAttention',
]
