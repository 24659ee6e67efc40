"""Linear maps with composed weights, for autograd.

Two ways to the same numbers:

- `compose_layers` makes the weights of many layers in one product per dictionary, `JointLinear`
  applies one of them. The gradient of a weight takes the place of the weight, of which nothing is
  needed any more, so that all gradients lie ready for one product per dictionary;
- `LayerLinear` composes the weight of one layer, keeps nothing of it, and composes it again in the
  backward pass.

Both save their input for the backward pass and nothing else (parameters are held, not saved). So
non-reentrant checkpointing, which counts what is saved, finds the same in a block that ran in a
joint pass and is recomputed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from masa_vit.layers.context import needs_plain_operations, no_autocast
from masa_vit.layers.kernels import compose_rows, composition_gradients
from masa_vit.layers.workspace import Lease


class Part(NamedTuple):
    """Rows of a weight that belong to one projection: shared, or dense."""

    start: int  # in elements of the flattened weight
    stop: int
    shared: bool

    def of(self, weights: torch.Tensor) -> torch.Tensor:
        """Cut this part out of flattened weights (L, out * in)."""
        return weights.narrow(1, self.start, self.stop - self.start)


class Spec(NamedTuple):
    """What a weight is made of, and in which dtype it is wanted."""

    parts: tuple[Part, ...]
    shape: tuple[int, int]  # (out, in)
    dtype: torch.dtype


class Held:
    """Tensors that a backward pass needs, checked as autograd checks what it saves."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tuple(tensors)
        self._versions = [None if t.is_inference() else t._version for t in tensors]

    def get(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors.

        Raises:
            RuntimeError: If one was changed in place since the forward pass.
        """
        for tensor, version in zip(self._tensors, self._versions, strict=True):
            if version is not None and tensor._version != version:
                raise RuntimeError(
                    f'a parameter of shape {tuple(tensor.shape)} that the backward pass needs was '
                    'changed in place after the forward pass (by an optimizer step?): its weights '
                    'were composed from the old values'
                )
        return self._tensors


class Recomputed(torch.autograd.Function):
    """A function of parameters whose intermediates are computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> Any:
        """Return ``function(*tensors)``."""
        ctx.function, ctx.held = function, Held(tensors)
        return function(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Differentiate the function, run once more."""
        create_graph = torch.is_grad_enabled()
        tensors = ctx.held.get()
        needs = ctx.needs_input_grad[1:]
        if not create_graph:
            tensors = [t.detach().requires_grad_(n) for t, n in zip(tensors, needs, strict=True)]
        with torch.enable_grad():
            out = ctx.function(*tensors)
        wanted = [t for t, need in zip(tensors, needs, strict=True) if need]
        grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=create_graph))
        return (None, *(next(grads) if need else None for need in needs))


def _graph_is_kept() -> bool:
    """Whether the graph of the running backward pass may be differentiated again."""
    asked = getattr(torch._C._autograd, '_get_current_graph_task_keep_graph', None)
    return True if asked is None else asked()


class _Composition(torch.autograd.Function):
    """All layers of a stack: for each part C (L, S) and atoms, or L dense blocks of rows."""

    @staticmethod
    def forward(
        ctx: Any,
        lease: Lease,
        spec: Spec,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        buffer = lease.buffer
        left = iter(tensors)
        for part in spec.parts:
            rows = part.of(buffer)
            if part.shared:
                with no_autocast(buffer.device):
                    compose_rows(rows, next(left), next(left))
            else:
                for row in rows:
                    row.copy_(next(left).reshape(-1))
        ctx.lease, ctx.spec, ctx.held = lease, spec, Held(tensors)
        ctx.set_materialize_grads(False)
        return tuple(row.view(spec.shape) for row in buffer.unbind(0))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        lease: Lease = ctx.lease
        tensors = ctx.held.get()
        needs = iter(ctx.needs_input_grad[2:])
        plain = any(needs_plain_operations(grad) for grad in grads if grad is not None)
        in_place = not plain and all(
            grad is not None and grad.data_ptr() == row.data_ptr() and grad.is_contiguous()
            for grad, row in zip(grads, lease.buffer, strict=True)
        )
        flat = lease.buffer if in_place else _stack(grads, lease.buffer)
        left = iter(tensors)
        out: list[torch.Tensor | None] = []
        with no_autocast(flat.device):
            for part in ctx.spec.parts:
                rows = part.of(flat)
                if not part.shared:
                    for row in rows:
                        like, need = next(left), next(needs)
                        # a copy, for the buffer has other uses
                        out.append(row.to(like.dtype, copy=True).view_as(like) if need else None)
                    continue
                coef, atoms = next(left), next(left)
                out += _gradients(rows, coef, atoms, next(needs), next(needs), plain)
        if not any(lease.uses):  # else other parts of the graph still need weights
            lease.end()
        return (None, None, *out)


def _stack(grads: Sequence[torch.Tensor | None], like: torch.Tensor) -> torch.Tensor:
    rows = [grad.reshape(-1) for grad in grads if grad is not None]
    if len(rows) < len(grads):  # the others are of layers that were not called
        left, zeros = iter(rows), like.new_zeros(like.shape[1])
        rows = [zeros if grad is None else next(left) for grad in grads]
    return torch.stack(rows)


def _gradients(
    grads: torch.Tensor,
    coef: torch.Tensor,
    atoms: torch.Tensor,
    need_coef: bool,
    need_atoms: bool,
    plain: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """`composition_gradients`; if `plain`, by operations that can be differentiated and batched."""
    if not plain:
        return composition_gradients(grads, coef, atoms, need_coef, need_atoms)
    grads = grads.to(atoms.dtype)
    return grads @ atoms.flatten(1).T, (coef.T @ grads).view_as(atoms)


class JointLinear(torch.autograd.Function):
    """``x W^T + b`` with a weight out of `compose_layers`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        lease: Lease,
        index: int,
    ) -> torch.Tensor:
        """Apply weight number `index` of a lease, (..., in) -> (..., out)."""
        ctx.save_for_backward(x)
        ctx.weight, ctx.lease, ctx.index = weight, lease, index
        if ctx.needs_input_grad[1]:
            lease.uses[index] += 1
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Put the gradient of the weight where the weight was, if nobody needs that again."""
        (x,) = ctx.saved_tensors
        lease, index = ctx.lease, ctx.index
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        kept = needs_plain_operations(grad) or _graph_is_kept() or not lease.spendable
        if torch.is_grad_enabled():  # create_graph: the weight enters another graph
            lease.never_end()
        last = need_weight and not kept and lease.uses[index] == 1
        if need_weight and not kept:
            lease.uses[index] -= 1
        with no_autocast(grad.device):
            grad_x = grad @ ctx.weight if need_x else None
            place = lease.spend(index).view_as(ctx.weight) if last else None
            grad_weight = _weight_gradient(grad, x, place) if need_weight else None
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if need_bias else None
        return grad_x, grad_weight, grad_bias, None, None


def _weight_gradient(
    grad: torch.Tensor, x: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """``dW = dy^T x``, (out, in)."""
    rows, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    return torch.mm(rows.T, inputs) if out is None else torch.mm(rows.T, inputs, out=out)


def compose_layers(
    lease: Lease, spec: Spec, tensors: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Compose the weights of all layers of a stack into the buffer of `lease`.

    Args:
        lease: Its buffer has one row (out * in) per layer.
        spec: What the weights are made of.
        tensors: For each part in order: C (L, S) and atoms (S, out, in), or the dense rows of
            all L layers.

    Returns:
        One weight (out, in) per layer.
    """
    return _Composition.apply(lease, spec, *tensors)


class LayerLinear(torch.autograd.Function):
    """``x W^T + b`` with a weight that is composed for this call, and again for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        spec: Spec,
        *tensors: torch.Tensor,
    ) -> torch.Tensor:
        """Compose from `tensors` (of each part: coefficients (S,) and atoms, or dense rows)."""
        ctx.save_for_backward(x)
        ctx.spec, ctx.held = spec, Held(tensors)
        return F.linear(x, compose_layer(spec, tensors), bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Differentiate with respect to the coefficients and atoms directly."""
        (x,) = ctx.saved_tensors
        spec, tensors = ctx.spec, ctx.held.get()
        need_x, need_bias, _, *needs = ctx.needs_input_grad
        with no_autocast(grad.device):
            grad_x = grad @ compose_layer(spec, tensors) if need_x else None
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if need_bias else None
            out: list[torch.Tensor | None] = []
            if not any(needs):
                return (grad_x, grad_bias, None, *[None] * len(tensors))
            flat = _weight_gradient(grad, x).reshape(1, -1)
            plain = needs_plain_operations(grad)
            left, of = iter(tensors), iter(needs)
            for part in spec.parts:
                rows = part.of(flat)
                if part.shared:
                    coef, atoms = next(left), next(left)
                    dc, da = _gradients(rows, coef[None], atoms, next(of), next(of), plain)
                    out += [None if dc is None else dc.reshape(-1), da]
                else:
                    like = next(left)
                    # a copy, for a view would keep the gradient of the whole weight
                    grad_rows = rows.to(like.dtype, copy=True).view_as(like)
                    out.append(grad_rows if next(of) else None)
        return (grad_x, grad_bias, None, *out)


def compose_layer(spec: Spec, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compose the weight (out, in) of one layer; arguments as `LayerLinear`.

    Differentiable where gradients are enabled.
    """
    left = iter(tensors)
    if torch.is_grad_enabled():
        mixed = [
            (next(left) @ next(left).flatten(1) if part.shared else next(left)).reshape(-1)
            for part in spec.parts
        ]
        return torch.cat(mixed).view(spec.shape).to(spec.dtype)
    weight = tensors[0].new_empty(1, spec.shape[0] * spec.shape[1], dtype=spec.dtype)
    with no_autocast(weight.device):
        for part in spec.parts:
            rows = part.of(weight)
            if part.shared:
                compose_rows(rows, next(left)[None], next(left))
            else:
                rows.copy_(next(left).reshape(1, -1))
    return weight.view(spec.shape)
