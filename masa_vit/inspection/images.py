"""What models do with the images of a folder."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from masa_vit.analysis import (
    ablate_atoms,
    attention_distance,
    attention_maps,
    class_attention,
    layer_cka,
)
from masa_vit.analysis.activations import patch_grid
from masa_vit.analysis.summary import Arrays, Summary
from masa_vit.compression.folder_data import choose, timm_transform
from masa_vit.images import find_images
from masa_vit.inspection.sources import Source

SHOWN = 4
"""Images whose attention is shown."""

ABLATED = 32
"""Images that the ablation is measured on, unless told otherwise: it needs many passes."""


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
    folders = sorted(path for path in Path(folder).glob('*') if path.is_dir())
    if len(folders) != num_classes or num_classes == 0:
        return Sample(sample, None)
    index_of = {folder: index for index, folder in enumerate(folders)}
    classes = [
        next((index_of[parent] for parent in path.parents if parent in index_of), -1)
        for path in sample
    ]
    return Sample(sample, None if -1 in classes else classes)


def look(
    source: Source,
    summary: Summary,
    folder: str,
    num_images: int,
    num_ablated: int,
    batch_size: int,
) -> list[str]:
    """Add to a summary what a model does with images.

    Args:
        source: With a model.
        summary: Of it; the arrays are added.
        folder: Of images; chosen at random (`sample_images`).
        num_images: For attention distance and CKA.
        num_ablated: How many of them for the ablation of atoms, 0 for none.
        batch_size: Of a pass.

    Returns:
        The images whose attention is in the summary, as the model gets them: `data:` URLs.

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
    batches = images.split(batch_size)
    shown = images[:SHOWN]
    maps = class_attention(
        attention_maps(model, shown),
        model.num_prefix_tokens,
        patch_grid(model, shown),
        getattr(model, 'has_class_token', None),
    )
    summary.images = {
        'attention_distance': attention_distance(model, batches),
        'class_attention': maps.movedim(0, 1),  # (L, B, H, rows, columns): images first
    }
    if len(images) > 1:
        summary.images['cka'] = layer_cka(model, batches)
    if num_ablated and source.weights.shares and model.num_classes:
        _ablate(model, summary, batches, sample, num_ablated)
    return [_data_url(image) for image in shown]


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
    model: Any, summary: Summary, batches: Sequence[torch.Tensor], sample: Sample, count: int
) -> None:
    images = torch.cat([*batches])[:count]
    size = len(batches[0])
    if sample.classes is None:
        data: Any = images.split(size)
    else:
        classes = torch.tensor(sample.classes[:count])
        data = [*zip(images.split(size), classes.split(size), strict=True)]
    ablation = ablate_atoms(model, data)
    for of_name, suffix in ((ablation.by_layer, ''), (ablation.everywhere, '_everywhere')):
        for name, effect in of_name.items():
            arrays: Arrays = {
                f'ablation_kl{suffix}': effect.kl,
                f'ablation_logits{suffix}': effect.distance,
            }
            if effect.accuracy is not None:
                arrays[f'ablation_accuracy{suffix}'] = effect.accuracy
            summary.projections[name] |= arrays
