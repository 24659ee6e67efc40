"""Detectors in mixed precision."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.utils._pytree import tree_map_only


@HOOKS.register_module()
class Float32HeadsHook(Hook):
    """Run the heads of a detector in float32 under mixed precision.

    mmdet makes anchors and boxes in the dtype of the outputs, and bfloat16 cannot represent odd integers
    from 256 on: proposals would be rounded, and non-maximum suppression would miss duplicates.
    """

    def before_run(self, runner: Any) -> None:
        """Hook the heads, once."""
        for module in runner.model.modules():
            is_head = isinstance(module, (BaseDenseHead, BBoxHead, FCNMaskHead))
            if is_head and _to_float32 not in module._forward_hooks.values():
                module.register_forward_hook(_to_float32)


def _to_float32(module: Any, inputs: Any, output: Any) -> Any:
    return tree_map_only(torch.Tensor, torch.Tensor.float, output)
