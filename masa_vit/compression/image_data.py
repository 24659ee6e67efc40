"""Images for calibration and accuracy, from folders, with timm's transform of a model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from masa_vit.inspection.activations import evaluating
from masa_vit.utils.images import choose, class_folders, find_images, timm_transform

Loader = Callable[[], Iterator[Any]]


class Data(NamedTuple):
    """Images for calibration and for accuracy."""

    calibration: list[torch.Tensor]
    """Batches (B, C, H, W); may be empty."""
    validation: Loader | None
    """Returns an iterator of images and classes (B,) at each call."""


class Accuracy(NamedTuple):
    """Top-1 of a model."""

    percent: float
    num_images: int


def top1_accuracy(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> Accuracy:
    """Return top-1 of a model on images (B, C, H, W) with classes (B,), in evaluation mode."""
    device = next(model.parameters()).device
    right = count = 0
    with evaluating(model):
        for images, targets in batches:
            found = model(images.to(device)).argmax(1).cpu()
            right += int((found == targets).sum())
            count += len(targets)
    if not count:
        raise ValueError('no images to measure top-1 with')
    return Accuracy(100.0 * right / count, count)


def folder_data(args: argparse.Namespace, model: Any) -> Data:
    """Read `args.num_images` of the folder `args.calibration`, and `args.num_val` of `args.val`.

    Raises:
        FileNotFoundError: If a folder does not exist or has no images.
        ValueError: If an image cannot be read, or the number of class folders is not that of the model.
        ImportError: If torchvision is missing.
    """
    if args.num_val is not None and not args.val:
        raise ValueError(f'--num-val {args.num_val} needs validation images: --val FOLDER')
    if not args.calibration and not args.val:
        return Data([], None)
    transform = timm_transform(model)
    calibration = []
    if args.calibration:
        paths = find_images([args.calibration])
        chosen = [(paths[index], -1) for index in choose(len(paths), args.num_images)]
        calibration = [images for images, _ in _batches(chosen, transform, args.batch_size)]
    if not args.val:
        return Data(calibration, None)
    classes = class_folders(args.val)
    if len(classes) != model.num_classes:
        raise ValueError(
            f'{args.val!r} has {len(classes)} folders, and the model {model.num_classes} classes: '
            'expected one folder for each, in the order of their names'
        )
    found = [(path, index) for index, of in enumerate(classes) for path in find_images([of])]
    samples = [found[index] for index in choose(len(found), args.num_val)]
    return Data(calibration, lambda: _batches(samples, transform, args.batch_size))


def _batches(
    samples: list[tuple[Path, int]], transform: Callable[[Any], torch.Tensor], batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        images = torch.stack([transform(path) for path, _ in batch])
        yield images, torch.tensor([index for _, index in batch])
