"""Attention, CKA and the ablation of atoms on the images of a folder."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from masa_vit.inspection import (
    ablate_atoms,
    attention_distance,
    attention_maps,
    class_attention,
    layer_cka,
)
from masa_vit.inspection.activations import patch_grid
from masa_vit.inspection.inspected import Source
from masa_vit.inspection.quantities import Arrays
from masa_vit.inspection.summary import Summary
from masa_vit.utils.images import choose, class_folders, find_images, timm_transform

SHOWN = 4
"""Images whose attention is shown."""

ABLATED = 32
"""Images that the ablation is measured on, by default: it needs many passes."""


class Sample(NamedTuple):
    """Images chosen from a folder."""

    paths: list[Path]
    classes: list[int] | None
    """Of the images, if the folder has one folder for each class of the model."""


def sample_images(folder: str, num_images: int, num_classes: int) -> Sample:
    """Choose images of a folder at random, with seed 0; their classes, if the folders say.

    Raises:
        FileNotFoundError: If there are none.
    """
    paths = find_images([folder])
    sample = [paths[index] for index in choose(len(paths), num_images)]
    folders = class_folders(folder) if Path(folder).expanduser().is_dir() else []
    if len(folders) != num_classes or num_classes == 0:
        return Sample(sample, None)
    classes = [
        next((i for i, of in enumerate(folders) if of in path.parents), -1) for path in sample
    ]
    return Sample(sample, None if -1 in classes else classes)


def add_image_quantities(
    source: Source,
    summary: Summary,
    folder: str,
    num_images: int,
    num_ablated: int,
    batch_size: int,
) -> tuple[list[str], str]:
    """Add the quantities of a model on images to its summary.

    Args:
        source: With a model.
        summary: Of it; the arrays are added.
        folder: Of images; chosen at random (`sample_images`).
        num_images: For attention distance and CKA.
        num_ablated: How many of them for the ablation of atoms, 0 for none.
        batch_size: Of a pass.

    Returns:
        The images whose attention is in the summary, as the model gets them, as `data:` URLs; a note.

    Raises:
        FileNotFoundError: If there are no images.
        ValueError: If the source has no model, or an image cannot be read.
    """
    if source.model is None:
        raise ValueError(f'--images needs a model to run, and there is none: {source.why}')
    model: Any = source.model
    sample = sample_images(folder, num_images, model.num_classes)
    prepare = source.prepare or timm_transform(model)
    images = torch.stack([prepare(path) for path in sample.paths])
    channels = model.patch_embed.proj.in_channels
    if images.shape[1] != channels:
        raise ValueError(
            f'{source.name} takes images of {channels} channels, and they are read as {images.shape[1]} '
            '(RGB): --images needs a model of RGB images'
        )
    batches = images.split(batch_size)
    shown = images[:SHOWN]
    summary.images = {
        'num_images': torch.tensor(len(images)),
        'attention_distance': attention_distance(model, batches),
        'class_attention': torch.stack([_class_attention(model, image[None]) for image in shown]),
    }
    if len(images) >= 4:  # fewer say nothing
        summary.images['cka'] = layer_cka(model, batches)
    if num_ablated and source.weights.shares and model.num_classes:
        _ablate(model, summary, images[:num_ablated], sample.classes, batch_size)
    return [_data_url(image) for image in shown], _note(summary, sample, folder, model)


def _note(summary: Summary, sample: Sample, folder: str, model: Any) -> str:
    text = f'On {len(sample.paths):,} images of {folder}.'
    if 'num_ablated' not in summary.images:
        return text
    text += f' Atoms are removed on {int(summary.images["num_ablated"]):,} of them'
    if 'accuracy' in summary.images:
        return text + f': top-1 {float(summary.images["accuracy"]):.1f} % with all atoms.'
    return (
        text
        + f', without top-1: there is not one folder for each of the {model.num_classes} classes.'
    )


def _class_attention(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Of one image: (L, H, rows, columns). All maps of several would need much memory."""
    return class_attention(
        attention_maps(model, images),
        model.num_prefix_tokens,
        patch_grid(model, images),
        getattr(model, 'has_class_token', None),
    ).squeeze(1)


def _data_url(image: torch.Tensor) -> str:
    """An image (C, H, W) of any range as a PNG."""
    from torchvision.transforms.functional import to_pil_image

    low, high = image.amin(), image.amax()
    picture = to_pil_image((image - low) / (high - low).clamp(min=1e-6))
    picture.thumbnail((224, 224))
    file = io.BytesIO()
    picture.save(file, 'PNG')
    return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()


def _ablate(
    model: Any,
    summary: Summary,
    images: torch.Tensor,
    classes: Sequence[int] | None,
    batch_size: int,
) -> None:
    batches: Any = images.split(batch_size)
    if classes is not None:
        batches = zip(batches, torch.tensor(classes[: len(images)]).split(batch_size), strict=True)
    ablation = ablate_atoms(model, batches)
    summary.images['num_ablated'] = torch.tensor(len(images))
    if ablation.accuracy is not None:
        summary.images['accuracy'] = torch.tensor(ablation.accuracy)
    for of_name, suffix in ((ablation.by_layer, ''), (ablation.everywhere, '_everywhere')):
        for name, effect in of_name.items():
            arrays: Arrays = {
                f'ablation_kl{suffix}': effect.kl,
                f'ablation_logits{suffix}': effect.distance,
            }
            if effect.accuracy is not None:
                arrays[f'ablation_accuracy{suffix}'] = effect.accuracy
            summary.projections[name] |= arrays
