"""Detectors for `masa-vit benchmark`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from masa_vit.benchmark import Kind, Spec, Subject
from masa_vit.detection.precision import Float32HeadsHook
from masa_vit.export import fold
from masa_vit.training.configs import load_config
from masa_vit.training.model_building import build_model

_OBJECTS = 8  # an image; COCO has 7.3


def detector_subject(spec: Spec) -> Subject:
    """The detector of a config on square noise with eight random boxes and masks an image.

    The dense baseline is the folded model, and all random numbers are the same, for time depends on what
    is proposed and detected.
    """
    cfg = load_config(spec.name)
    cfg.model.data_preprocessor.pad_size_divisor = 1  # the size asked for, not the recipe's
    if spec.checkpointing:
        cfg.model.backbone.with_cp = True
    torch.manual_seed(0)
    model: Any = build_model(cfg)
    Float32HeadsHook().before_run(SimpleNamespace(model=model))  # as a run has it, for autocast
    model = (fold(model) if spec.dense else model).to(spec.device)
    size = spec.img_size or 1024
    data = model.data_preprocessor(_inputs(spec.batch_size, size), training=True)
    return Subject(
        Path(spec.name).stem + (' (dense)' if spec.dense else ''),
        model,
        (size, size),
        partial(_loss, data=data),
        partial(_predict, data=data),
    )


def _check(spec: Spec) -> None:
    if spec.model_args:
        raise ValueError(
            f'arguments {sorted(spec.model_args)} are given for {spec.name!r}: a detector has its '
            'arguments in its config'
        )
    load_config(spec.name)


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


def _loss(model: Any, data: dict[str, Any]) -> torch.Tensor:
    torch.manual_seed(0)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    return loss


def _predict(model: Any, data: dict[str, Any]) -> Any:
    return model(**data, mode='predict')


DETECTOR = Kind(
    detector_subject,
    _check,
    missing={
        'compile': 'mmdet does not compile',
        'load': 'files of detectors are read into the model that was trained',
        'compress': 'detectors cannot be compressed',
        'flops': 'the computation of a detector depends on its proposals',
    },
)
"""Detectors of MMDetection, by their configs."""
