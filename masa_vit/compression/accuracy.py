"""The accuracy of a model before and after its compression."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn


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
    was_training = model.training
    right = count = 0
    with torch.inference_mode():
        model.eval()
        for images, targets in batches:
            found = model(images.to(device)).argmax(1).cpu()
            right += int((found == targets).sum())
            count += len(targets)
    model.train(was_training)
    if not count:
        raise ValueError('there are no images to take top-1 on')
    return Accuracy(100.0 * right / count, count)


def without_residual(model: nn.Module) -> nn.Module:
    """A copy of a compressed model that has its atoms alone."""
    model = copy.deepcopy(model)
    for name, param in model.named_parameters():
        if '.up_' in name:
            nn.init.zeros_(param)
    return model
