"""Non-maximum suppression."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision import ops

from masa_vit.detection.mmcv_ops.common import operator, wide


@operator
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes (N, 4) to keep, by falling score; offset 1 counts the last pixel."""
    boxes, scores = wide(boxes, scores)
    return ops.nms(_extend(boxes, offset), scores, _float32(iou_threshold))


@operator
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Indices of the boxes to keep; the first rows of dets (N, 5) take boxes and new scores.

    method: 0 naive, 1 linear, 2 gaussian. All tensors are on the CPU.
    """
    kept: list[int] = []
    values: list[float] = []
    wide_boxes, scores = wide(boxes.detach(), scores.detach())
    corners = _extend(wide_boxes, offset).T.numpy()
    areas = (corners[2] - corners[0]) * (corners[3] - corners[1])
    # a column for every box that is left
    left, index = np.stack([*corners, areas, scores.numpy()]), np.arange(len(boxes))
    while len(index):
        best = left[-1].argmax()
        x1, y1, x2, y2, area, score = left[:, best]
        kept.append(int(index[best]))
        values.append(float(score))
        width = np.minimum(left[2], x2) - np.maximum(left[0], x1)
        height = np.minimum(left[3], y2) - np.maximum(left[1], y1)
        shared = width.clip(0) * height.clip(0)
        union = left[4] + area - shared
        overlap = np.divide(shared, union, out=np.zeros_like(union), where=union > 0)
        if method == 2:
            left[-1] *= np.exp(-(overlap**2) / sigma)
        else:
            left[-1] *= np.where(overlap >= iou_threshold, method * (1 - overlap), 1)
        stay = left[-1] >= min_score
        stay[best] = False
        left, index = left[:, stay], index[stay]
    keep = torch.tensor(kept, dtype=torch.int64)
    dets[: len(keep)] = torch.cat([wide_boxes[keep], scores.new_tensor(values)[:, None]], dim=1)
    return keep


def _extend(boxes: Tensor, offset: int) -> Tensor:
    return boxes + boxes.new_tensor([0, 0, offset, offset]) if offset else boxes


def _float32(threshold: float) -> float:
    # mmcv compares in float32, where a threshold of 0.3 is 0.30000001
    return torch.tensor(threshold, dtype=torch.float32).item()
