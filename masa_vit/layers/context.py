"""What surrounds a call: autocast, and tracers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd import forward_ad


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Switch autocast off for operations on `device`, where there is autocast at all."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def autocast_dtype(like: torch.Tensor) -> torch.dtype | None:
    """The dtype that autocast asks of tensors like this one now, None where it asks nothing."""
    kind = like.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return None if like.dtype == torch.float64 else torch.get_autocast_dtype(kind)


def holds_data(tensor: torch.Tensor) -> bool:
    """Whether this is no fake tensor of a tracer, and no shard of a distributed one."""
    return type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__


def needs_plain_operations(grad: torch.Tensor) -> bool:
    """Whether a backward pass is itself differentiated, or runs on a batch of gradients."""
    is_batched = getattr(torch._C._functorch, 'is_legacy_batchedtensor', lambda tensor: False)
    return (
        torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or is_batched(grad)
    )


def saving_is_watched() -> bool:
    """Whether somebody intercepts what autograd saves, as checkpointing and offloading do."""
    ask = getattr(torch._C._autograd, '_top_saved_tensors_default_hooks', None)
    return ask is None or ask(False) is not None


def cast_for(
    dtype: torch.dtype, x: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cast the operands of a linear map as autocast would, if it is on."""
    if autocast_dtype(x) is None:
        return x, bias
    return x.to(dtype), None if bias is None else bias.to(dtype)


def runs_eagerly(x: torch.Tensor) -> bool:
    """Whether `x` is computed on now, by plain autograd.

    If not (a tracer, `torch.compile`, `torch.export`, `torch.func`, forward-mode differentiation),
    the weights are composed by ordinary operations, which all of these understand.
    """
    return (
        isinstance(x, torch.Tensor)
        and not torch.compiler.is_compiling()
        and holds_data(x)
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )
