"""Preprocess a batch on the model's device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS

from masa_vit.training.image_datasets import IGNORE_INDEX

__all__ = ['ImagePreprocessor']


@MODELS.register_module()
class ImagePreprocessor(BaseDataPreprocessor):
    """Move a batch to the device and normalise its uint8 images.

    Images that a pipeline made float are taken to be normalised and pass as they are. In
    training, samples whose image could not be read (``on_error='skip'``) leave the batch here. Where
    not one could be read, only the targets leave: other ranks may wait for a forward and backward
    pass, which needs images to work on.

    Args:
        mean: of R, G, B, in 0..255; default: ImageNet's.
        std: likewise.
    """

    def __init__(
        self,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        non_blocking: bool = False,
    ):
        super().__init__(non_blocking=non_blocking)
        if len(mean) != len(std) or not mean:
            raise ValueError(f'mean and std need one value a channel, got {mean} and {std}')
        if min(std) <= 0:
            raise ValueError(f'std must be positive, in units of 0..255, got {std}')
        self.register_buffer('mean', torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, data: dict, training: bool = False) -> dict:
        """``dict(inputs=(B, 3, H, W), targets=(B,))`` -> the same, on the device and float."""
        if training:  # before the move: a look at the targets on a GPU would wait for it
            keep = data['targets'] != IGNORE_INDEX  # (B,)
            if not keep.any():
                data = {**data, 'targets': data['targets'][:0]}
            elif not keep.all():
                data = {key: value[keep] for key, value in data.items()}
        data = self.cast_data(data)
        inputs = data['inputs']
        if inputs.dtype == torch.uint8:
            inputs = (inputs.float() - self.mean) / self.std
        return {**data, 'inputs': inputs}
