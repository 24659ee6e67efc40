"""Sigmoid focal loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from masa_vit.detection.mmcv_ops.common import operator, wide


@operator
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """input (N, C), target (N,), weight (C,) or empty -> output (N, C); class C is background."""
    logit, _, scale = _parts(input, target, weight, alpha)
    output.copy_(-scale * (-logit).sigmoid() ** gamma * F.logsigmoid(logit))


@operator
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of the loss with respect to input, (N, C), into grad_input."""
    logit, sign, scale = _parts(input, target, weight, alpha)
    right, wrong = logit.sigmoid(), (-logit).sigmoid()
    slope = gamma * right * F.logsigmoid(logit) - wrong
    grad_input.copy_(sign * scale * wrong**gamma * slope)


def _parts(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logit of the target, its sign in input, the weight of an element; all (N, C)."""
    (input,) = wide(input)
    positive = (target[:, None] == torch.arange(input.shape[1], device=input.device)).to(input)
    sign = 2 * positive - 1
    scale = alpha * positive + (1 - alpha) * (1 - positive)
    if weight.numel():
        scale = scale * weight.index_select(0, target)[:, None]
    return sign * input, sign, scale
