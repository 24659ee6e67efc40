"""Multi-scale deformable attention, by mmcv's own PyTorch implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from masa_vit.detection.mmcv_ops.common import operator


@operator
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Attend to sampled points of several maps.

    Args:
        value: (B, keys, heads, channels of a head).
        value_spatial_shapes: (height, width) of each map, (levels, 2).
        value_level_start_index: Not used: it follows from the shapes.
        sampling_locations: (B, queries, heads, levels, points, 2), as shares of width and height.
        attention_weights: (B, queries, heads, levels, points).
        im2col_step: Not used.

    Returns:
        (B, queries, channels).
    """
    # at call time: mmcv.ops is being imported when this module is
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    shapes = value_spatial_shapes.tolist()  # one transfer from the device
    return multi_scale_deformable_attn_pytorch(value, shapes, sampling_locations, attention_weights)


@operator
def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Fill the three gradients; the forward pass is computed again."""
    with torch.enable_grad():
        value, locations, weights = (
            tensor.detach().requires_grad_()
            for tensor in (value, sampling_locations, attention_weights)
        )
        output = ms_deform_attn_forward(
            value, value_spatial_shapes, value_level_start_index, locations, weights, im2col_step
        )
    grads = torch.autograd.grad(output, (value, locations, weights), grad_output)
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)
