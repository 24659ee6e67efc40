"""Check the strides of a detector's feature maps before the first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from masa_vit.detection.attention import WindowedAttention
from masa_vit.training.wrapped_models import is_sharded, unwrap

__all__ = ['StrideCheckHook']


@HOOKS.register_module()
class StrideCheckHook(Hook):
    """Refuse to start when feature maps have other strides than heads and RoI extractors assume.

    mmdet places anchors and points by the strides of the config alone: with others it trains and
    predicts boxes at wrong places and sizes, without an error.
    """

    def before_train(self, runner: Any) -> None:
        """Compare the strides of one forward pass with those of the heads."""
        check_strides(unwrap(runner.model))

    def before_test(self, runner: Any) -> None:
        """Compare the strides of one forward pass with those of the heads."""
        check_strides(unwrap(runner.model))


def check_strides(model: nn.Module) -> None:
    """Compare the strides of a detector's maps with those that its parts assume.

    Parts are heads with anchors or points, and RoI extractors. Sharded models, and those without such
    parts, are not checked.

    Raises:
        ValueError: If they differ; the message names the keys of the config.
    """
    assumed = assumed_strides(model)
    if not assumed or not hasattr(model, 'extract_feat') or is_sharded(model):
        return
    found = map_strides(model, max(max(strides) for _, strides in assumed.values()))
    wrong = {
        key: strides
        for key, (whole, strides) in assumed.items()
        if strides != (found if whole else found[: len(strides)])
    }
    if wrong:
        neck = next(iter(wrong.values()))
        listed = ', '.join(f'{key}={strides}' for key, strides in wrong.items())
        raise ValueError(
            f'the feature maps have strides {found}, but the config has {listed}: boxes would be '
            f'placed and sized wrongly. With SimpleFPN set model.neck.strides={neck}, '
            f'or set the keys to {found}'
        )


def assumed_strides(model: nn.Module) -> dict[str, tuple[bool, list[int]]]:
    """Return key of the config -> whether the part takes all maps, and the strides that it assumes."""
    assumed = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseRoIExtractor):
            assumed[f'model.{name}.featmap_strides'] = False, [*module.featmap_strides]
        elif isinstance(module, BaseDenseHead) and (strides := _prior_strides(module)):
            key = 'strides' if hasattr(module, 'strides') else 'anchor_generator.strides'
            assumed[f'model.{name}.{key}'] = True, [_square(stride) for stride in strides]
    return assumed


def _prior_strides(head: nn.Module) -> Sequence[Any]:
    return getattr(getattr(head, 'prior_generator', None), 'strides', ())


def _square(stride: int | Sequence[int]) -> int:
    """Return a stride as one number; mmdet has (width, height)."""
    return stride if isinstance(stride, int) else stride[0]


@torch.no_grad()
def map_strides(model: Any, largest: int) -> list[int]:
    """Return the strides of a detector's maps, from the forward pass of a zero image.

    Args:
        model: A detector of mmdet.
        largest: The largest stride that is expected; the image has twice its side or more.
    """
    windows = [
        module.window_size
        for module in model.modules()
        if isinstance(module, WindowedAttention) and module.window_size and not module.pad
    ]
    # a multiple of the windows, where they must tile the map of 16 pixels a token
    side = math.lcm(2 * largest, *(16 * size for size in windows))
    image = torch.zeros(1, 3, side, side, device=next(model.parameters()).device)
    training = {module: module.training for module in model.modules()}
    try:
        maps = model.eval().extract_feat(image)
    finally:
        for module, mode in training.items():
            module.training = mode
    return [round(side / each.shape[-1]) for each in maps]
