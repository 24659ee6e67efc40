"""RoIAlign and RoIPool."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import ops

from masa_vit.detection.mmcv_ops.common import operator, refuse, wide


@operator
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """input (B, C, H, W), rois (R, 5) -> output (R, C, aligned_height, aligned_width)."""
    if pool_mode != 1:
        refuse("RoIAlign with pool_mode='max' (not 'avg')")
    size = (aligned_height, aligned_width)
    maps, boxes = wide(input, rois)
    output.copy_(ops.roi_align(maps, boxes, size, spatial_scale, sampling_ratio, aligned))


@operator
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """grad_output (R, C, aligned_height, aligned_width) -> grad_input (B, C, H, W)."""
    grad, boxes = wide(grad_output, rois)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad,
            boxes,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


@operator
def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """input (B, C, H, W), rois (R, 5) -> output, argmax (R, C, pooled_height, pooled_width)."""
    maps, boxes = wide(input, rois)
    # torchvision rounds the corners of a box and mmcv does not: cut the box into its bins, which
    # have whole corners, and let torchvision pool each of them to one number
    low, high = boxes[:, 1:3] * spatial_scale, (boxes[:, 3:] + 1) * spatial_scale
    edges = []
    for axis, count, limit in ((0, pooled_width, maps.shape[3]), (1, pooled_height, maps.shape[2])):
        start = low[:, axis, None]
        step = (high - low)[:, axis, None] / count
        number = torch.arange(count, device=boxes.device)
        first = (number * step + start).floor().clamp(0, limit)
        last = ((number + 1) * step + start).ceil().clamp(0, limit)
        edges.append((first, last))
    (left, right), (top, bottom) = edges  # (R, pooled_width) and (R, pooled_height)
    bins = torch.stack(
        torch.broadcast_tensors(
            boxes[:, 0, None, None],
            left[:, None],
            top[:, :, None],
            right[:, None] - 1,
            bottom[:, :, None] - 1,
        ),
        dim=-1,
    )  # (R, pooled_height, pooled_width, 5)
    found, where = torch.ops.torchvision.roi_pool(maps, bins.flatten(0, 2), 1.0, 1, 1)
    # bins outside of the map and boxes without area give 0 and take no gradient
    empty = (bins[..., 3] < bins[..., 1]) | (bins[..., 4] < bins[..., 2])
    empty |= (high <= low).any(1)[:, None, None]
    shape = (*bins.shape[:3], maps.shape[1])
    output.copy_(found.view(shape).masked_fill(empty[..., None], 0).permute(0, 3, 1, 2))
    argmax.copy_(where.view(shape).masked_fill(empty[..., None], -1).permute(0, 3, 1, 2))


@operator
def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """grad_output (R, C, pooled_height, pooled_width) -> grad_input (B, C, H, W)."""
    grad, boxes = wide(grad_output, rois)
    grad_input.copy_(
        torch.ops.torchvision._roi_pool_backward(
            grad, boxes, argmax, spatial_scale, pooled_height, pooled_width, *grad_input.shape
        )
    )
