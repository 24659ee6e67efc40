"""Non-maximum suppression."""

from __future__ import annotations

import math
from collections.abc import Callable

import mmcv.ops
import pytest
import torch
import torchvision
from mmcv.ops import batched_nms, soft_nms
from torch import Tensor


def iou(a: list[float], b: list[float], offset: int) -> float:
    def area(box: list[float]) -> float:
        return (box[2] - box[0] + offset) * (box[3] - box[1] + offset)

    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    shared = max(width, 0.0) * max(height, 0.0)
    union = area(a) + area(b) - shared
    return shared / union if union else 0.0


def reference_nms(boxes: list, scores: list, threshold: float, offset: int) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=scores.__getitem__, reverse=True):
        if all(iou(boxes[index], boxes[other], offset) <= threshold for other in kept):
            kept.append(index)
    return kept


def reference_soft_nms(
    boxes: list,
    scores: list,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: str,
    offset: int,
) -> tuple[list[int], list[float]]:
    left = dict(enumerate(scores))
    kept, values = [], []
    while left:
        best = max(left, key=left.__getitem__)
        kept.append(best)
        values.append(left.pop(best))
        for index in list(left):
            overlap = iou(boxes[best], boxes[index], offset)
            if method == 'gaussian':
                left[index] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= iou_threshold:
                left[index] *= 0 if method == 'naive' else 1 - overlap
            if left[index] < min_score:
                del left[index]
    return kept, values


@pytest.mark.parametrize('offset', [0, 1])
def test_nms(device: str, offset: int, random_boxes: Callable[..., Tensor]):
    boxes, scores = random_boxes(60).to(device), torch.rand(60, device=device)
    dets, kept = mmcv.ops.nms(boxes, scores, 0.3, offset=offset)
    assert kept.tolist() == reference_nms(boxes.tolist(), scores.tolist(), 0.3, offset)
    assert 5 < len(kept) < 60
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], dim=1)[kept])
    if not offset:
        assert torch.equal(kept, torchvision.ops.nms(boxes, scores, 0.3))


def test_nms_offset_changes_what_overlaps():
    boxes = torch.tensor([[0.0, 0, 1, 1], [1, 0, 2, 1]])  # side by side, or sharing a column
    scores = torch.tensor([0.9, 0.8])
    assert mmcv.ops.nms(boxes, scores, 0.3, offset=0)[1].tolist() == [0, 1]
    assert mmcv.ops.nms(boxes, scores, 0.3, offset=1)[1].tolist() == [0]


def test_nms_compares_with_the_threshold_in_float32(device: str):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 3]], device=device)  # IoU is 0.3
    scores = torch.tensor([0.9, 0.8], device=device)
    assert len(mmcv.ops.nms(boxes, scores, 0.3)[1]) == 2
    assert len(mmcv.ops.nms(boxes, scores, 0.299999)[1]) == 1


def test_nms_keeps_classes_apart(device: str, random_boxes: Callable[..., Tensor]):
    boxes, scores = random_boxes(60).to(device), torch.rand(60, device=device)
    classes = torch.randint(3, (60,), device=device)
    dets, kept = batched_nms(boxes, scores, classes, {'type': 'nms', 'iou_threshold': 0.3})
    assert kept.tolist() == torchvision.ops.batched_nms(boxes, scores, classes, 0.3).tolist()
    together = batched_nms(boxes, scores, classes, {'iou_threshold': 0.3}, class_agnostic=True)[1]
    assert together.tolist() == mmcv.ops.nms(boxes, scores, 0.3)[1].tolist()
    assert len(together) < len(kept)
    assert torch.equal(dets[:, :4], boxes[kept])


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms(device: str, method: str, offset: int, random_boxes: Callable[..., Tensor]):
    boxes, scores = random_boxes(60).to(device), torch.rand(60, device=device)
    options = dict(iou_threshold=0.3, sigma=0.5, min_score=0.05, method=method, offset=offset)
    dets, kept = soft_nms(boxes, scores, **options)
    expected, values = reference_soft_nms(boxes.tolist(), scores.tolist(), **options)
    assert kept.tolist() == expected
    assert len(kept) < 60
    assert torch.equal(dets[:, :4], boxes[kept])
    torch.testing.assert_close(dets[:, 4].cpu().double(), torch.tensor(values).double())
    assert dets.device == kept.device == boxes.device


def test_soft_nms_keeps_boxes_without_area():
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9]])
    for method in ('naive', 'linear', 'gaussian'):
        dets, kept = soft_nms(boxes, torch.tensor([0.3, 0.2, 0.9]), 0.3, method=method)
        assert kept.tolist() == [2, 0, 1]
        assert dets[:, 4].tolist() == pytest.approx([0.9, 0.3, 0.2])


def test_nms_of_nothing(device: str):
    boxes, scores = torch.zeros(0, 4, device=device), torch.zeros(0, device=device)
    for function in (mmcv.ops.nms, soft_nms):
        dets, kept = function(boxes, scores, 0.5)
        assert dets.shape == (0, 5)
        assert kept.shape == (0,)
        assert kept.dtype == torch.int64


def test_nms_in_low_precision(device: str, dtype: torch.dtype, random_boxes: Callable[..., Tensor]):
    boxes = random_boxes(30).to(device, dtype)
    scores = torch.randperm(30, device=device).to(dtype) / 32  # no two alike
    for function in (mmcv.ops.nms, soft_nms):
        dets, kept = function(boxes, scores, 0.3)
        assert dets.dtype == dtype
        assert kept.tolist() == function(boxes.float(), scores.float(), 0.3)[1].tolist()


def test_nms_of_strided_tensors(random_boxes: Callable[..., Tensor]):
    boxes, scores = random_boxes(40), torch.rand(40)
    expected = mmcv.ops.nms(boxes[::2].contiguous(), scores[::2].contiguous(), 0.3)[1]
    assert torch.equal(mmcv.ops.nms(boxes[::2], scores[::2], 0.3)[1], expected)
    columns = boxes[::2].t().contiguous().t()
    assert torch.equal(soft_nms(columns, scores[::2])[1], soft_nms(boxes[::2], scores[::2])[1])
