"""Images to compress and measure by, from folders, as timm prepares them for a model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from masa_vit.images import find_images, read_image

Loader = Callable[[], Iterator[Any]]


class Data(NamedTuple):
    """Images to compress by, and to measure by."""

    calibration: list[torch.Tensor]
    """Batches (B, C, H, W); may be empty."""
    validation: Loader | None
    """Gives batches of images and classes (B,), anew at each call."""


def folder_data(args: argparse.Namespace, model: nn.Module) -> Data:
    """Read `args.calibration` and `args.val`, folders of images; of each, as many as asked for.

    Raises:
        FileNotFoundError: If a folder does not exist or has no images.
        ValueError: If an image cannot be read, or the folders of classes are not as many as the
            model has, or some of no validation images are asked for.
        ImportError: If torchvision is missing.
    """
    if args.num_val is not None and not args.val:
        raise ValueError(f'--num-val {args.num_val} is for validation images: --val FOLDER')
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
    found = _classes(Path(args.val), model)
    samples = [found[index] for index in choose(len(found), args.num_val)]
    return Data(calibration, lambda: _batches(samples, transform, args.batch_size))


def choose(length: int, number: int | None) -> list[int]:
    """Draw indices of at most so many images, always the same ones; None: of all, in order."""
    if number is None:
        return [*range(length)]
    order = torch.randperm(length, generator=torch.Generator().manual_seed(0))
    return order[:number].tolist()


def timm_transform(model: Any) -> Callable[[Any], torch.Tensor]:
    """What timm does to an image that the model is evaluated on."""
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    size = (model.patch_embed.proj.in_channels, *model.patch_embed.img_size)
    config = resolve_data_config({'input_size': size}, model=model)
    transform = create_transform(**config, is_training=False)
    return lambda path: transform(Image.fromarray(read_image(path)))


def _classes(folder: Path, model: Any) -> list[tuple[Path, int]]:
    """The images in one folder for each class, the folders in the order of their names."""
    if not folder.is_dir():
        raise FileNotFoundError(f'the folder {str(folder)!r} does not exist')
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if len(classes) != model.num_classes:
        raise ValueError(
            f'{str(folder)!r} has {len(classes)} folders, and the model {model.num_classes} classes: '
            'expected one folder for each, in the order of their names'
        )
    return [(path, index) for index, of in enumerate(classes) for path in find_images([of])]


def _batches(
    samples: list[tuple[Path, int]], transform: Callable[[Any], torch.Tensor], batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        images = torch.stack([transform(path) for path, _ in batch])
        yield images, torch.tensor([index for _, index in batch])
