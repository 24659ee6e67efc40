"""Image classification on mmengine: classifier, datasets, transforms, accuracy.

Needs the ``train`` extra. Importing it registers its classes with mmengine.
"""

from .classifier import ImageClassifier
from .datasets import Digits, ImageDataset, ImageFolder, ImageNet, TorchvisionDataset
from .distillation import DistilledClassifier
from .hooks import NumClassesCheckHook, SkippedImagesHook
from .metrics import Accuracy
from .preprocessor import ImagePreprocessor
from .transforms import Albumentations, TimmTransform, TorchvisionTransform

__all__ = [
    'Accuracy',
    'Albumentations',
    'Digits',
    'DistilledClassifier',
    'ImageClassifier',
    'ImageDataset',
    'ImageFolder',
    'ImageNet',
    'ImagePreprocessor',
    'NumClassesCheckHook',
    'SkippedImagesHook',
    'TimmTransform',
    'TorchvisionDataset',
    'TorchvisionTransform',
]
