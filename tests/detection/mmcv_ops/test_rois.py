"""RoIAlign and RoIPool."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torchvision
from mmcv.ops import RoIAlign, RoIPool
from torch import Tensor
from torch.autograd import gradcheck


def bilinear(image: Tensor, y: float, x: float) -> Tensor:
    """image (C, H, W) at one point; goes on as its border for one pixel, then is zero."""
    _, height, width = image.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return image.new_zeros(len(image))
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = math.floor(y), math.floor(x)
    value = image.new_zeros(len(image))
    for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            if 0 <= row < height and 0 <= column < width:
                value = value + image[:, row, column] * share_y * share_x
    return value


def reference_roi_align(
    maps: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    shift, results = 0.5 if aligned else 0.0, []
    for batch, *corners in rois.tolist():
        x1, y1, x2, y2 = (corner * scale - shift for corner in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        step_y, step_x = height / size[0], width / size[1]
        samples_y, samples_x = ratio or math.ceil(step_y), ratio or math.ceil(step_x)
        for row in range(size[0]):
            for column in range(size[1]):
                values = [
                    bilinear(
                        maps[int(batch)],
                        y1 + step_y * (row + (i + 0.5) / samples_y),
                        x1 + step_x * (column + (j + 0.5) / samples_x),
                    )
                    for i in range(samples_y)
                    for j in range(samples_x)
                ]
                results.append(sum(values) / len(values))
    return torch.stack(results).unflatten(0, (len(rois), *size)).permute(0, 3, 1, 2)


def reference_roi_pool(maps: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    results = []
    for batch, x1, y1, x2, y2 in rois.tolist():
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        for row in range(size[0]):
            for column in range(size[1]):
                step_y, step_x = (y2 - y1) / size[0], (x2 - x1) / size[1]
                top, left = math.floor(y1 + row * step_y), math.floor(x1 + column * step_x)
                bottom = math.ceil(y1 + (row + 1) * step_y)
                right = math.ceil(x1 + (column + 1) * step_x)
                window = maps[
                    int(batch), :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)
                ]
                empty = window.numel() == 0
                results.append(maps.new_zeros(maps.shape[1]) if empty else window.amax((1, 2)))
    return torch.stack(results).unflatten(0, (len(rois), *size)).permute(0, 3, 1, 2)


def compare(layer: Callable, reference: Callable, maps: Tensor, rois: Tensor) -> None:
    """Values and gradients of a layer in float32 and of a reference in float64."""
    precise = maps.double().cpu().requires_grad_()
    expected = reference(precise, rois.double().cpu())
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    maps = maps.clone().requires_grad_()
    found = layer(maps, rois)
    (found * weight.to(found)).sum().backward()
    torch.testing.assert_close(found.cpu(), expected.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(maps.grad.cpu(), precise.grad.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align(device: str, aligned: bool, ratio: int, random_rois: Callable[..., Tensor]):
    maps = torch.randn(2, 3, 10, 14, device=device)
    rois = random_rois(6, size=36).to(device)
    rois[0, 1:] = torch.tensor([-30.0, -30, 8, 8])  # over the edge
    rois[1, 1:] = torch.tensor([4.0, 4, 4.5, 4.5])  # within a pixel
    args = ((3, 2), 0.25, ratio, 'avg', aligned)
    layer = RoIAlign(*args)
    assert not layer.use_torchvision
    compare(layer, lambda m, r: reference_roi_align(m, r, (3, 2), 0.25, ratio, aligned), maps, rois)
    torch.testing.assert_close(layer(maps, rois), RoIAlign(*args, use_torchvision=True)(maps, rois))


@pytest.mark.parametrize('scale', [1.0, 0.25])
def test_roi_pool(device: str, scale: float, random_rois: Callable[..., Tensor]):
    maps = torch.randn(2, 3, 10, 14, device=device)
    rois = random_rois(8, size=9 / scale).to(device)
    rois[0, 1:] = torch.tensor([-30.0, -30, 8, 8])
    rois[1, 1:] = torch.tensor([900.0, 900, 950, 950])  # outside
    compare(
        RoIPool((3, 2), scale), lambda m, r: reference_roi_pool(m, r, (3, 2), scale), maps, rois
    )
    if scale == 1:  # torchvision rounds corners: the same where there is nothing to round
        rois = rois.round()
        expected = torchvision.ops.roi_pool(maps, rois, (3, 2), scale)
        torch.testing.assert_close(RoIPool((3, 2), scale)(maps, rois), expected)


def test_roi_pool_of_a_box_turned_over_gives_zeros_and_no_gradient():
    maps = torch.randn(1, 2, 8, 8, requires_grad=True)
    found = RoIPool(2)(maps, torch.tensor([[0.0, 6, 6, 2, 2]]))
    found.sum().backward()
    assert not found.any()
    assert not maps.grad.any()


@pytest.mark.parametrize('layer', [RoIAlign((2, 3), 0.5), RoIAlign(2, 0.5, 2), RoIPool(2, 0.5)])
def test_gradients_of_roi_layers(
    device: str, layer: torch.nn.Module, random_rois: Callable[..., Tensor]
):
    maps = torch.randn(2, 2, 6, 7, device=device, dtype=torch.float64, requires_grad=True)
    rois = random_rois(4, size=9).to(device, torch.float64)
    assert gradcheck(lambda m: layer(m, rois), (maps,), nondet_tol=1e-6)


@pytest.mark.parametrize('layer', [RoIAlign(2, 0.5), RoIPool(2, 0.5)])
def test_roi_layers_without_rois(device: str, layer: torch.nn.Module):
    maps = torch.randn(2, 3, 6, 7, device=device, requires_grad=True)
    found = layer(maps, torch.zeros(0, 5, device=device))
    assert found.shape == (0, 3, 2, 2)
    found.sum().backward()
    assert not maps.grad.any()


@pytest.mark.parametrize('layer', [RoIAlign(2, 0.5), RoIPool(2, 0.5)])
def test_roi_layers_in_low_precision(
    device: str, dtype: torch.dtype, layer: torch.nn.Module, random_rois: Callable[..., Tensor]
):
    maps = torch.randn(2, 3, 6, 7, device=device).to(dtype).requires_grad_()
    rois = random_rois(4, size=9).to(device)
    with torch.autocast(device, dtype):
        found = layer(maps, rois)  # rois stay in float32
    found.float().square().sum().backward()
    same = maps.detach().float().requires_grad_()
    expected = layer(same, rois)
    expected.square().sum().backward()
    assert found.dtype == maps.grad.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(maps.grad.float(), same.grad, rtol=0.05, atol=0.05)


@pytest.mark.parametrize('layer', [RoIAlign(2, 0.5), RoIPool(2, 0.5)])
def test_roi_layers_with_strided_tensors(
    layer: torch.nn.Module, random_rois: Callable[..., Tensor]
):
    maps = torch.randn(2, 4, 6, 7)
    rois = random_rois(4, size=9)
    strided = maps.to(memory_format=torch.channels_last).requires_grad_()
    found = layer(strided, rois.t().contiguous().t())
    torch.testing.assert_close(found, layer(maps, rois))
    found.transpose(0, 1).square().sum().backward()
    maps.requires_grad_()
    layer(maps, rois).square().sum().backward()
    torch.testing.assert_close(strided.grad, maps.grad)
