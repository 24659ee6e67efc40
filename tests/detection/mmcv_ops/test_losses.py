"""Sigmoid focal loss."""

from __future__ import annotations

import pytest
import torch
import torchvision
from mmcv.ops import sigmoid_focal_loss
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F


def reference_focal(
    logits: Tensor, target: Tensor, gamma: float, alpha: float, weight: Tensor | None
) -> Tensor:
    classes = logits.shape[1]
    truth = F.one_hot(target, classes + 1)[:, :classes].double()
    right = torch.where(truth == 1, logits.sigmoid(), 1 - logits.sigmoid())
    loss = -torch.where(truth == 1, alpha, 1 - alpha) * (1 - right) ** gamma * right.log()
    return loss if weight is None else loss * weight[target][:, None]


@pytest.mark.parametrize('gamma', [2.0, 0.5])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
def test_sigmoid_focal_loss(device: str, gamma: float, weighted: bool, reduction: str):
    logits = 3 * torch.randn(12, 4, device=device)
    # 4 is the background, which has no weight of its own in mmcv
    target = torch.randint(4 if weighted else 5, (12,), device=device)
    weight = torch.rand(4, device=device) if weighted else None
    precise = logits.double().cpu().requires_grad_()
    double = None if weight is None else weight.double().cpu()
    expected = reference_focal(precise, target.cpu(), gamma, 0.3, double)
    expected = {'none': expected, 'mean': expected.sum() / 12, 'sum': expected.sum()}[reduction]
    factor = torch.randn_like(expected)
    (expected * factor).sum().backward()
    logits.requires_grad_()
    found = sigmoid_focal_loss(logits, target, gamma, 0.3, weight, reduction)
    (found * factor.to(found)).sum().backward()
    torch.testing.assert_close(found.cpu(), expected.float())
    torch.testing.assert_close(logits.grad.cpu(), precise.grad.float(), rtol=1e-4, atol=1e-5)


def test_gradient_of_sigmoid_focal_loss(device: str):
    logits = torch.randn(6, 3, device=device, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 3, 0], device=device)
    expected = torchvision.ops.sigmoid_focal_loss(
        logits, F.one_hot(target, 4)[:, :3].double(), alpha=0.25, gamma=2.0
    )
    torch.testing.assert_close(sigmoid_focal_loss(logits, target, 2, 0.25, None, 'none'), expected)
    assert gradcheck(lambda x: sigmoid_focal_loss(x, target, 2.0, 0.25, None, 'none'), (logits,))


def test_sigmoid_focal_loss_of_extremes_and_of_nothing(device: str):
    logits = torch.tensor([[200.0, -200.0]], device=device, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([1], device=device), 2.0, 0.25, None, 'none')
    loss.sum().backward()
    torch.testing.assert_close(loss.cpu(), torch.tensor([[150.0, 50.0]]))
    torch.testing.assert_close(logits.grad.cpu(), torch.tensor([[0.75, -0.25]]))
    none = torch.zeros(0, 3, device=device, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    loss = sigmoid_focal_loss(none, empty, 2.0, 0.25, None, 'sum')
    loss.backward()
    assert loss == 0
    assert none.grad.shape == (0, 3)


def test_sigmoid_focal_loss_in_low_precision(device: str, dtype: torch.dtype):
    logits = torch.randn(8, 3, device=device).to(dtype).requires_grad_()
    target = torch.randint(4, (8,), device=device)
    loss = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    loss.float().sum().backward()
    same = logits.detach().float().requires_grad_()
    expected = sigmoid_focal_loss(same, target, 2.0, 0.25, None, 'none')
    expected.sum().backward()
    assert loss.dtype == logits.grad.dtype == dtype
    torch.testing.assert_close(loss.float(), expected, rtol=0.02, atol=0.01)
    torch.testing.assert_close(logits.grad.float(), same.grad, rtol=0.02, atol=0.01)
