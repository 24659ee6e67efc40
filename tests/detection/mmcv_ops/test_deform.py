"""Deformable convolution."""

from __future__ import annotations

import pytest
import torch
import torchvision
from bilinear_reference import bilinear
from mmcv.ops import (
    DeformConv2dPack,
    ModulatedDeformConv2dPack,
    deform_conv2d,
    modulated_deform_conv2d,
)
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F

CONV = dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, deform_groups=2)


def reference_deform_conv(
    x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, bias: Tensor | None
) -> Tensor:
    (stride, padding, dilation), groups = list(CONV.values())[:3], CONV['groups']
    batch, kernel = len(x), weight.shape[2:]
    rows, columns = offset.shape[2:]
    taps = kernel[0] * kernel[1]
    # offsets (B, deform_groups, taps, (y, x), rows, columns)
    offset = offset.unflatten(1, (-1, taps, 2))
    mask = None if mask is None else mask.unflatten(1, (-1, taps))
    parts = offset.shape[1]
    results = []
    for b in range(batch):
        for row in range(rows):
            for column in range(columns):
                patch = []
                for part in range(parts):
                    image = x[b].chunk(parts)[part]
                    for tap in range(taps):
                        i, j = divmod(tap, kernel[1])
                        dy, dx = offset[b, part, tap, :, row, column]
                        value = bilinear(
                            image,
                            dy + row * stride[0] - padding[0] + i * dilation[0],
                            dx + column * stride[1] - padding[1] + j * dilation[1],
                        )
                        if mask is not None:
                            value = value * mask[b, part, tap, row, column]
                        patch.append(value)
                # (parts, taps, channels / parts) -> (groups, channels / groups, taps)
                found = torch.stack(patch).unflatten(0, (parts, taps)).transpose(1, 2).flatten(0, 1)
                found = found.unflatten(0, (groups, -1))
                kernels = weight.flatten(2).unflatten(0, (groups, -1))
                results.append(torch.einsum('gct,goct->go', found, kernels).flatten())
    out = torch.stack(results).unflatten(0, (batch, rows, columns)).permute(0, 3, 1, 2)
    return out if bias is None else out + bias[:, None, None]


def deform_inputs(device: str) -> dict[str, Tensor]:
    """Inputs for CONV with a 3x2 kernel; the outputs are 3x6."""
    shapes = dict(
        x=(2, 4, 5, 4), offset=(2, 24, 3, 6), weight=(6, 2, 3, 2), mask=(2, 12, 3, 6), bias=(6,)
    )
    return {name: torch.randn(shape).to(device) for name, shape in shapes.items()}


def mmcv_deform_conv(
    x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, bias: Tensor | None
) -> Tensor:
    if mask is None:
        return deform_conv2d(x, offset, weight, *CONV.values())
    return modulated_deform_conv2d(x, offset, mask, weight, bias, *CONV.values())


@pytest.mark.parametrize('without', [('mask', 'bias'), ('bias',), ()])
def test_deform_conv(device: str, without: tuple[str, ...]):
    inputs = deform_inputs(device)
    precise = {k: v.double().cpu().requires_grad_() for k, v in inputs.items() if k not in without}
    inputs = {k: v.requires_grad_() for k, v in inputs.items() if k not in without}
    nothing = dict.fromkeys(without)
    expected = reference_deform_conv(**precise, **nothing)
    factor = torch.randn_like(expected)
    (expected * factor).sum().backward()
    found = mmcv_deform_conv(**inputs, **nothing)
    (found * factor.to(found)).sum().backward()
    torch.testing.assert_close(found.cpu(), expected.float(), rtol=1e-4, atol=1e-4)
    for name, tensor in inputs.items():
        torch.testing.assert_close(
            tensor.grad.cpu(), precise[name].grad.float(), rtol=1e-4, atol=1e-4, msg=name
        )
    options = {name: CONV[name] for name in ('stride', 'padding', 'dilation')}
    torch.testing.assert_close(
        found,
        torchvision.ops.deform_conv2d(
            *(inputs[name] for name in ('x', 'offset', 'weight')),
            bias=inputs.get('bias'),
            mask=inputs.get('mask'),
            **options,
        ),
    )


@pytest.mark.parametrize('without', [('mask', 'bias'), ()])
def test_gradients_of_deform_conv(device: str, without: tuple[str, ...]):
    inputs = {
        name: (None if name in without else value.double().requires_grad_())
        for name, value in deform_inputs(device).items()
    }
    assert gradcheck(mmcv_deform_conv, tuple(inputs.values()), nondet_tol=1e-6, fast_mode=True)


@pytest.mark.parametrize('layer', [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_deform_layers_start_as_convolutions(device: str, layer: type[torch.nn.Module]):
    conv = layer(4, 6, 3, padding=1).to(device)
    x = torch.randn(2, 4, 8, 8, device=device)
    strength = 1 if layer is DeformConv2dPack else 0.5  # sigmoid(0)
    found = conv(x)
    torch.testing.assert_close(found, strength * F.conv2d(x, conv.weight, padding=1))
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in conv.conv_offset.parameters())
    strided = conv(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(strided, found)


@pytest.mark.parametrize('layer', [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_deform_layers_under_autocast(device: str, layer: type[torch.nn.Module]):
    conv = layer(4, 6, 3, padding=1).to(device)
    torch.nn.init.normal_(conv.conv_offset.weight, std=0.1)
    x = torch.randn(2, 4, 8, 8, device=device)
    with torch.autocast(device, torch.bfloat16):
        found = conv(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), conv(x), rtol=0.1, atol=0.1)
    found.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in conv.parameters())
