"""The accuracy of a model before and after its compression."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from masa_vit.inspection.activations import evaluating
from masa_vit.layers import SharedLinear


class Accuracy(NamedTuple):
    """Top-1 of a model."""

    percent: float
    num_images: int
    """On which it was taken."""


def top1_accuracy(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> Accuracy:
    """Find for how many images (B, C, H, W) a model finds the class (B,), in evaluation mode."""
    device = next(model.parameters()).device
    right = count = 0
    with evaluating(model):
        for images, targets in batches:
            found = model(images.to(device)).argmax(1).cpu()
            right += int((found == targets).sum())
            count += len(targets)
    if not count:
        raise ValueError('there are no images to take top-1 on')
    return Accuracy(100.0 * right / count, count)


def without_residual(model: nn.Module) -> nn.Module:
    """A copy of a compressed model that has its atoms alone."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, SharedLinear):
            for name in layer.ranks:
                nn.init.zeros_(layer.get_parameter(f'up_{name}'))
    return model
