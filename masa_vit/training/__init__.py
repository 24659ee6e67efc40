"""Train, evaluate and use models with mmengine's Runner: classifiers here, detectors by configs.

Needs the extra ``train``. Importing registers hooks, datasets, transforms, models and optimizer wrappers
with mmengine.
"""

try:
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        'masa_vit.training needs packages that are not installed '
        f'({error.name}): pip install "masa-vit[train]"'
    ) from error

from masa_vit.training import hooks, optimizer_groups
from masa_vit.training.accuracy_metric import Accuracy
from masa_vit.training.classifier import ImageClassifier
from masa_vit.training.configs import load_config
from masa_vit.training.distillation import DistilledClassifier
from masa_vit.training.evaluation import test
from masa_vit.training.image_datasets import (
    Digits,
    ImageDataset,
    ImageFolder,
    ImageNet,
    TorchvisionDataset,
)
from masa_vit.training.launch import train
from masa_vit.training.preprocessor import ImagePreprocessor
from masa_vit.training.transforms import Albumentations, TimmTransform, TorchvisionTransform

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
    'TimmTransform',
    'TorchvisionDataset',
    'TorchvisionTransform',
    'hooks',
    'load_config',
    'optimizer_groups',
    'test',
    'train',
]
