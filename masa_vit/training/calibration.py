"""The images of a training run, for `masa-vit compress`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from masa_vit.compression.image_data import Data
from masa_vit.training.configs import load_config
from masa_vit.training.image_datasets import IGNORE_INDEX
from masa_vit.utils.images import choose


def config_data(args: argparse.Namespace, model: nn.Module) -> Data:
    """Take calibration images from the training set of a config, and its validation set.

    Their numbers are `num_images` and `num_val`. Training images go through the pipeline of the
    validation set: nothing is augmented.

    Args:
        args: Of `masa-vit compress`: the config is `source`.
        model: On whose device the images are wanted.

    Raises:
        ValueError: If the config is not that of a classifier.
        FileNotFoundError: If its data are missing.
    """
    for name in ('calibration', 'val'):
        if getattr(args, name):
            raise ValueError(
                f'--{name} is for models without a config; {args.source!r} names its own data'
            )
    cfg = load_config(args.source)
    loader = cfg.get('val_dataloader') or cfg.get('test_dataloader')
    if loader is None or cfg.get('train_dataloader') is None:
        raise ValueError(f'{args.source!r} has no training or no validation data')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        preprocessor = MODELS.build(
            cfg.model.get('data_preprocessor')
            or cfg.get('data_preprocessor')
            or {'type': 'ImagePreprocessor'}
        )
        pipeline = loader.dataset.get('pipeline', [])
        train = DATASETS.build({**cfg.train_dataloader.dataset, 'pipeline': pipeline})
        validation = DATASETS.build(loader.dataset)
    preprocessor = preprocessor.to(next(model.parameters()).device)
    chosen = Subset(train, choose(len(train), args.num_images))
    calibration = [images for images, _ in _batches(chosen, preprocessor, args.batch_size)]
    measured = Subset(validation, choose(len(validation), args.num_val))
    return Data(calibration, lambda: _batches(measured, preprocessor, args.batch_size))


def _batches(
    dataset: Dataset, preprocessor: Any, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of images as the model takes them, and classes; unreadable images are left out."""
    for batch in DataLoader(dataset, batch_size):
        data = preprocessor(batch)
        keep = data['targets'] != IGNORE_INDEX
        if keep.any():
            yield data['inputs'][keep], data['targets'][keep]
