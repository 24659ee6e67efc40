"""Detectors for `masa-vit benchmark`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from masa_vit.analysis.benchmark import Subject
from masa_vit.convert import fold
from masa_vit.engine.build import build_model
from masa_vit.engine.config import load_config

_OBJECTS = 8  # an image; COCO has 7.3


def detector_subject(
    config: str, dense: bool, batch_size: int, img_size: int | None, device: str
) -> Subject:
    """The detector of a config on square noise with eight random boxes and masks an image.

    Training is one step with AdamW on all parameters. The dense twin is the folded model, and all
    random numbers are the same, for time depends on what is proposed and detected.
    """
    cfg = load_config(config)
    cfg.model.data_preprocessor.pad_size_divisor = 1  # the size asked for, not the recipe's
    torch.manual_seed(0)
    model: Any = build_model(cfg)
    model = (fold(model) if dense else model).to(device)
    size = img_size or 1024
    data = model.data_preprocessor(_inputs(batch_size, size), training=True)
    return Subject(
        Path(config).stem + (' (dense)' if dense else ''),
        model,
        size,
        partial(_training_step, data=data),
        partial(_evaluation, data=data),
    )


def _inputs(batch_size: int, size: int) -> dict[str, list]:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(0)
    samples = []
    for index in range(batch_size):
        start, end = torch.rand(2, _OBJECTS, 2, generator=generator) * size
        boxes = torch.cat([torch.minimum(start, end), torch.maximum(start, end) + 1], dim=1)
        masks = np.zeros((_OBJECTS, size, size), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        shape = dict(img_shape=(size, size), ori_shape=(size, size), scale_factor=(1.0, 1.0))
        sample = DetDataSample(
            metainfo={**shape, 'img_id': index, 'batch_input_shape': (size, size)}
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes,
            labels=torch.zeros(_OBJECTS, dtype=torch.long),
            masks=BitmapMasks(masks, size, size),
        )
        samples.append(sample)
    images = torch.randint(0, 256, (batch_size, 3, size, size), generator=generator)
    return {'inputs': list(images.to(torch.uint8)), 'data_samples': samples}


def _training_step(model: Any, data: dict[str, Any]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> None:
        torch.manual_seed(0)
        model.train()
        optimizer.zero_grad()
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        loss.backward()
        optimizer.step()

    return step


def _evaluation(model: nn.Module, data: dict[str, Any]) -> Callable[[], None]:
    def evaluate() -> None:
        with torch.inference_mode():
            model(**data, mode='predict')

    return evaluate
