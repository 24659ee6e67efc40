"""Multi-scale deformable attention."""

from __future__ import annotations

import math

import pytest
import torch
from bilinear_reference import bilinear
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from torch import Tensor
from torch.autograd import gradcheck

SHAPES = ((4, 3), (2, 5))


def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """By the function that mmcv's layer calls on a GPU."""
    shapes = torch.tensor(SHAPES, device=value.device)
    starts = torch.tensor([0, 12], device=value.device)
    return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)


def reference(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries, heads, _, points = weights.shape
    maps = value.split([math.prod(shape) for shape in SHAPES], dim=1)
    results = []
    for b in range(batch):
        for query in range(queries):
            for head in range(heads):
                total = value.new_zeros(value.shape[-1])
                for level, (height, width) in enumerate(SHAPES):
                    image = maps[level][b, :, head].T.unflatten(1, (height, width))
                    for point in range(points):
                        x, y = locations[b, query, head, level, point]
                        sampled = bilinear(image, y * height - 0.5, x * width - 0.5)
                        total = total + weights[b, query, head, level, point] * sampled
                results.append(total)
    return torch.stack(results).reshape(batch, queries, -1)


@pytest.fixture
def inputs(device: str) -> tuple[Tensor, Tensor, Tensor]:
    value = torch.randn(2, 22, 2, 3)  # 22 keys: 4 * 3 + 2 * 5
    locations = torch.rand(2, 3, 2, 2, 4, 2) * 1.4 - 0.2  # some outside
    weights = torch.rand(2, 3, 2, 2, 4)
    return value.to(device), locations.to(device), weights.to(device)


def test_deformable_attention(inputs: tuple[Tensor, ...]):
    precise = [tensor.double().cpu().requires_grad_() for tensor in inputs]
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    expected = reference(*precise)
    factor = torch.randn_like(expected)
    (expected * factor).sum().backward()
    found = attend(*inputs)
    (found * factor.to(found)).sum().backward()
    torch.testing.assert_close(found.cpu(), expected.float(), rtol=1e-4, atol=1e-4)
    for tensor, exact in zip(inputs, precise, strict=True):
        torch.testing.assert_close(tensor.grad.cpu(), exact.grad.float(), rtol=1e-3, atol=1e-3)


def test_gradients(inputs: tuple[Tensor, ...]):
    precise = tuple(tensor.double().requires_grad_() for tensor in inputs)
    assert gradcheck(attend, precise, nondet_tol=1e-6, fast_mode=True)


def test_half_precision(inputs: tuple[Tensor, ...], dtype: torch.dtype):
    value, locations, weights = inputs
    found = attend(value.to(dtype), locations, weights)  # as under autocast
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), attend(*inputs), rtol=0.1, atol=0.1)
