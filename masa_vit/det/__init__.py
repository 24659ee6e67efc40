"""MASA backbones in MMDetection; importing this registers them with `mmdet.registry`.

Needs the ``det`` extra. Import it before `mmdet.apis`: where mmcv has no compiled operators it puts
those on torchvision in their place.
"""

from masa_vit.det import mmcv_ops, packages

packages.check()
mmcv_ops.install()

# mmdet's modules look for the operators when they are imported
from masa_vit.det.attention import WindowedAttention  # noqa: E402
from masa_vit.det.backbone import MasaViT  # noqa: E402
from masa_vit.det.datasets import CheckedCocoDataset  # noqa: E402
from masa_vit.det.hooks import DetClassesCheckHook  # noqa: E402
from masa_vit.det.simple_fpn import SimpleFPN  # noqa: E402
from masa_vit.det.visualization import ValidationPicturesHook  # noqa: E402

__all__ = [
    'CheckedCocoDataset',
    'DetClassesCheckHook',
    'MasaViT',
    'SimpleFPN',
    'ValidationPicturesHook',
    'WindowedAttention',
]
