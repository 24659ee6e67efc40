"""The measured models and their input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.layers import to_2tuple, use_reentrant_ckpt
from torch import nn

from masa_vit.export.folding import dense_record
from masa_vit.layers import SharedLinear
from masa_vit.models import create_timm_model, dense_architecture


@dataclass(frozen=True)
class Spec:
    """A model as the command line names it, or its dense baseline."""

    name: str
    """A timm model, or another name that a `Kind` builds from."""
    dense: bool = False
    """Build the dense baseline of `name` instead of the model itself."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """For `timm.create_model`; a dense baseline takes those that dense models have."""
    batch_size: int = 8
    img_size: int | None = None
    """Pixels; None: the size of the model."""
    device: str = 'cpu'
    checkpointing: bool = False
    """Recompute the blocks in the backward pass."""


@dataclass
class Subject:
    """A model with its input; `loss` and `predict` take the model, which may be compiled or folded."""

    name: str
    model: nn.Module
    img_size: tuple[int, int]
    loss: Callable[[nn.Module], torch.Tensor]
    predict: Callable[[nn.Module], Any]
    cache: dict[str, nn.Module] = field(default_factory=dict)
    """Other forms of the model."""

    @property
    def is_shared(self) -> bool:
        """Whether any weights are composed from atoms."""
        return any(isinstance(module, SharedLinear) for module in self.model.modules())


@dataclass(frozen=True)
class Kind:
    """A kind of models."""

    build: Callable[[Spec], Subject]
    """A function of a module, so that other processes find it."""
    check: Callable[[Spec], None] = lambda spec: None
    """Raises ValueError for a spec that cannot be built."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Measurement or option that is not available -> reason."""


def check_timm(spec: Spec) -> None:
    """Check a spec before anything is built.

    Raises:
        ValueError: For an unknown model, an image size given twice, or reentrant checkpointing.
    """
    if ':' not in spec.name and not timm.is_model(spec.name):
        raise ValueError(f'{spec.name!r} is not a model of timm; see timm.list_models()')
    if spec.img_size and 'img_size' in spec.model_args:
        raise ValueError(
            f'the image size is given twice, as --img-size {spec.img_size} and as '
            f'img_size={spec.model_args["img_size"]} of {spec.name!r}: leave one out'
        )
    if spec.checkpointing and use_reentrant_ckpt():
        raise ValueError(
            'timm is set to reentrant checkpointing, which shared weights do not support: unset '
            'TIMM_REENTRANT_CKPT'
        )


def timm_subject(spec: Spec) -> Subject:
    """Build a timm model with random images, all of class 0.

    Raises:
        ValueError: For a model or an argument that timm refuses, or a model without checkpointing.
    """
    name, args = spec.name, dict(spec.model_args)
    if spec.dense and dense_architecture(name):
        name, args = dense_record(name, args)
    if spec.img_size:
        args['img_size'] = spec.img_size
    model: Any = create_timm_model(name, args).to(spec.device)
    if spec.checkpointing:
        if not hasattr(model, 'set_grad_checkpointing'):
            raise ValueError(f'{name!r} has no gradient checkpointing')
        model.set_grad_checkpointing()
    channels, *size = model.default_cfg['input_size']
    size = to_2tuple(args.get('img_size') or size)
    images = torch.randn(
        spec.batch_size, args.get('in_chans') or channels, *size, device=spec.device
    )
    targets = torch.zeros(spec.batch_size, dtype=torch.long, device=spec.device)
    return Subject(
        ' '.join([name, *(f'{key}={value}' for key, value in args.items() if key != 'img_size')]),
        model,
        size,
        loss=lambda model: nn.functional.cross_entropy(model(images), targets),
        predict=lambda model: model(images),
    )


TIMM = Kind(timm_subject, check_timm)
"""Models of `timm.create_model`."""
