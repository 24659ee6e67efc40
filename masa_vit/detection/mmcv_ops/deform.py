"""Deformable convolution, without and with a mask (DCN and DCNv2)."""

from __future__ import annotations

import torch
from torch import Tensor

from masa_vit.detection.mmcv_ops.common import operator, wide


@operator
def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """input (B, C, H, W), weight (O, C / group, kH, kW), offset (B, ...) -> output (B, O, ...)."""
    sizes = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_forward(input, weight, offset, None, None, sizes))


@operator
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Fill gradInput and gradOffset."""
    sizes = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _backward(gradOutput, input, weight, offset, None, None, sizes)
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[2])


@operator
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Fill gradWeight."""
    sizes = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    weight = torch.zeros_like(
        gradWeight
    )  # not passed by mmcv, and the gradient is independent of it
    grads = _backward(gradOutput, input, weight, offset, None, None, sizes)
    gradWeight.copy_(scale * grads[1])


@operator
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """As `deform_conv_forward`, with a mask and, if with_bias, a bias (O,)."""
    sizes = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    output.copy_(_forward(input, weight, offset, mask, bias if with_bias else None, sizes))


@operator
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Fill grad_input, grad_weight, grad_offset, grad_mask and, if with_bias, grad_bias."""
    sizes = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    targets = [grad_input, grad_weight, grad_offset, grad_mask]
    grads = _backward(grad_output, input, weight, offset, mask, bias if with_bias else None, sizes)
    for target, grad in zip(targets + [grad_bias] * with_bias, grads, strict=False):
        target.copy_(grad)


def _forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    sizes: tuple[int, ...],
) -> Tensor:
    tensors = wide(*_complete(input, weight, offset, mask, bias))
    return torch.ops.torchvision.deform_conv2d(*tensors, *sizes, mask is not None)


def _backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    sizes: tuple[int, ...],
) -> tuple[Tensor, ...]:
    """Gradients of input, weight, offset, mask, bias."""
    tensors = wide(grad_output, *_complete(input, weight, offset, mask, bias))
    return torch.ops.torchvision._deform_conv2d_backward(*tensors, *sizes, mask is not None)


def _complete(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, ...]:
    # torchvision needs tensors also where there is no mask or bias
    mask = input.new_zeros(len(input), 1) if mask is None else mask
    bias = input.new_zeros(len(weight)) if bias is None else bias
    return input, weight, offset, mask, bias
