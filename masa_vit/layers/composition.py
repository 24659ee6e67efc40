"""Who composes the weights, and when.

- Inside `with composing(layers, x):`, which a model opens around its forward pass, the weights of all
  layers are composed when the first of them is called, in one product per dictionary. In evaluation
  they are kept for the next pass until a parameter changes.
- A layer that is called outside of such a pass composes its own weight, and keeps nothing: less
  memory, more work, the same numbers.
- Tracers and compilers see ordinary operations, layer by layer (`SharedLinear.compose_weight`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from masa_vit.layers.atoms import AtomBank
from masa_vit.layers.autograd import JointLinear, Spec, compose_layers
from masa_vit.layers.coefficients import coefficient_matrices
from masa_vit.layers.context import (
    autocast_dtype,
    cast_for,
    holds_data,
    runs_eagerly,
    saving_is_watched,
)
from masa_vit.layers.workspace import Kept, Lease

if TYPE_CHECKING:
    from masa_vit.layers.linear import SharedLinear

COMPOSITIONS = ('kept', 'joint', 'layerwise')
"""How a model composes, from the fastest to the smallest.

- 'kept': all layers at once; in evaluation the weights stay until a parameter changes.
- 'joint': all layers at once, in every forward pass.
- 'layerwise': each layer when it is called, in training once more in the backward pass; no more than
  one composed weight at a time.
"""


def composing(
    blocks: Iterable[nn.Module],
    paths: Iterable[str],
    x: torch.Tensor,
    composition: str = 'kept',
) -> AbstractContextManager[Any]:
    """Open the scope of a forward pass, in which the weights of all blocks are composed together.

    Weights are kept only in evaluation mode, and only where no gradient of them is asked for. They
    are composed anew after anything that autograd sees change a parameter or buffer: optimizer
    steps, loading, edits in place; and after `train()`, `eval()`, `to()`, and a pass with gradients.
    What does not move a tensor's version cannot be seen, and needs `refresh`: writing through
    `.data` or numpy, collectives (`broadcast`, `all_reduce`) and other processes.

    The coefficients of a block that is not called in a pass with gradients get zeros, not None.

    Args:
        blocks: The blocks of the pass.
        paths: Where in a block the shared linear maps are: the layout given to `share_linears`.
        x: An input of the pass, by which tracing is recognised.
        composition: One of `COMPOSITIONS`.
    """
    if composition == 'layerwise' or not runs_eagerly(x):
        return nullcontext()
    steps = [path.split('.') for path in paths]
    linears = [reduce(_child, names, block) for block in blocks for names in steps]
    # others are dense, or have been wrapped: then what is inside composes for itself
    shared: list[Any] = [linear for linear in linears if hasattr(type(linear), 'stack_key')]
    return _Pass(shared, keep=composition == 'kept')


def _child(module: Any, name: str) -> Any:
    return getattr(module, name, None)


def refresh(module: nn.Module) -> None:
    """Drop the composed weights that the banks in `module` keep for evaluation.

    Needed only after a change in evaluation mode that autograd does not see: writing through `.data`
    or numpy, collectives (`broadcast`, `all_reduce`), other processes, and the step of an optimizer
    with `fused=True` that no forward pass with gradients preceded since the last evaluation.
    """
    for child in module.modules():
        if isinstance(child, AtomBank):
            child.refresh()


_SMALL = 2**18
"""Elements of a weight up to which `JointLinear` costs more time than the copy that it spares."""


class _Weight(NamedTuple):
    """The weight of a layer in one pass."""

    value: torch.Tensor
    lease: Lease | None  # None: kept, no gradient is taken of it
    row: int


class _Pass:
    """The scope of one forward pass: stacks are composed when a layer of them is first called."""

    def __init__(self, layers: Sequence[SharedLinear], keep: bool) -> None:
        self._layers = layers
        self._keep = keep
        self._grad_enabled = torch.is_grad_enabled()
        # None: not composed in this pass
        self._weights: dict[tuple[SharedLinear, torch.dtype | None], _Weight | None] = {}
        self._coefs: dict[Any, dict[str, torch.Tensor]] = {}
        self._coef_tensors: dict[Any, list[torch.Tensor]] = {}
        self._token: Token[_Pass | None] | None = None

    def __enter__(self) -> None:
        self._token = _current.set(self)

    def __exit__(self, *exc: object) -> None:
        if self._token is not None:
            _current.reset(self._token)

    def apply(self, layer: SharedLinear, x: torch.Tensor) -> torch.Tensor | None:
        """Apply a layer; None if it is not part of this pass."""
        grad_enabled = torch.is_grad_enabled()
        if grad_enabled and not self._grad_enabled:
            return None  # what was composed without gradients has none to give
        key = (layer, autocast_dtype(x))
        if key not in self._weights:
            if layer not in self._layers:
                return None
            # as when the pass began, not as in a region without gradients inside of it
            with torch.set_grad_enabled(self._grad_enabled):
                self._compose(layer, key[1])
        weight = self._weights[key]
        # a backward pass, run before the scope was left, may have put gradients in its place
        if weight is None or (weight.lease is not None and weight.lease.spent):
            return None
        value, lease, index = weight
        if not grad_enabled:
            return F.linear(x, value, layer.bias)
        watched = saving_is_watched()
        if lease is None:
            # a checkpoint must find the same saved now and when this layer is recomputed alone
            return None if watched else F.linear(x, value, layer.bias)
        if value.requires_grad and value.numel() <= _SMALL and not watched:
            lease.uses[index] += 1  # until the graph is gone
            lease.spendable = False  # autograd has saved a view of the buffer
            return F.linear(x, value, layer.bias)
        x, bias = cast_for(value.dtype, x, layer.bias)
        return JointLinear.apply(x, value, bias, lease, index)

    def _compose(self, layer: SharedLinear, dtype: torch.dtype | None) -> None:
        """Compose the weights of the stack that `layer` is of."""
        key = layer.stack_key
        layers = [other for other in self._layers if other.stack_key == key]
        spec = layer.spec(dtype)
        bank = layer.first_bank
        workspace = bank.workspace(key)
        sources = tuple(other.coef for other in layers)
        if sources not in self._coef_tensors:  # a block's stacks have one source
            tensors = [tensor for source in sources for tensor in source.tensors()]
            self._coef_tensors[sources] = list(dict.fromkeys(tensors))
        made_of = layer.own_tensors(layers) + self._coef_tensors[sources]
        if not all(holds_data(tensor) for tensor in made_of):
            # FSDP gathers the parameters of a block only while the block runs
            self._weights.update({(other, dtype): None for other in layers})
            return
        lease = None
        if self._keep and not bank.training and self._may_keep(made_of):
            kept = workspace.kept
            if kept is None or not kept.is_of(spec, made_of):
                # the old ones are freed before there are new ones
                kept = workspace.kept = None
                with torch.inference_mode(False), torch.no_grad():
                    kept = workspace.kept = Kept(spec, made_of, compose_stack(layers, spec))
            weights = kept.weights
        else:
            workspace.kept = None  # a step is to follow, and may be one that cannot be seen
            shape = (len(layers), spec.shape[0] * spec.shape[1])
            lease = workspace.lease(shape, spec.dtype, made_of[0].device)
            if sources not in self._coefs:
                self._coefs[sources] = coefficient_matrices(sources)
            weights = compose_layers(lease, spec, stack_tensors(layers, self._coefs[sources]))
        for index, (other, weight) in enumerate(zip(layers, weights, strict=True)):
            self._weights[other, dtype] = _Weight(weight, lease, index)

    def _may_keep(self, made_of: Sequence[torch.Tensor]) -> bool:
        """Whether changes of these tensors can be seen, and nobody asks for their gradients."""
        if self._grad_enabled and any(tensor.requires_grad for tensor in made_of):
            return False
        if made_of[0].is_cuda and torch.cuda.is_current_stream_capturing():
            return False  # a graph that is replayed must compose again
        return not any(tensor.is_inference() for tensor in made_of)


_current: ContextVar[_Pass | None] = ContextVar('masa_vit_pass', default=None)


def apply_in_pass(layer: SharedLinear, x: torch.Tensor) -> torch.Tensor | None:
    """Apply a layer with its weight in the pass that is running; None if it is in none."""
    running = _current.get()
    return None if running is None else running.apply(layer, x)


def stack_tensors(
    layers: Sequence[SharedLinear], coefs: dict[str, torch.Tensor]
) -> list[torch.Tensor]:
    """What the weights of a stack are composed from, in the order of `compose_layers`."""
    tensors: list[torch.Tensor] = []
    for name in layers[0].names:
        if name in layers[0].banks:
            tensors += [coefs[name], layers[0].banks[name].atoms]
        else:
            tensors += [layer.dense_rows(name) for layer in layers]
    return tensors


def compose_stack(layers: Sequence[SharedLinear], spec: Spec) -> tuple[torch.Tensor, ...]:
    """Compose the weights (out, in) of all layers of one stack, without a graph."""
    with torch.no_grad():
        coefs = coefficient_matrices([layer.coef for layer in layers])
        tensors = stack_tensors(layers, coefs)
        shape = (len(layers), spec.shape[0] * spec.shape[1])
        buffer = torch.empty(shape, dtype=spec.dtype, device=tensors[0].device)
        return compose_layers(Lease(None, buffer), spec, tensors)


def composed_weights(layers: Sequence[SharedLinear]) -> dict[SharedLinear, torch.Tensor]:
    """Compose the weights of layers of any stacks, with the numbers of a joint pass.

    Returns:
        Layer -> its weight (out, in), without its residual, in the dtype of the atoms.
    """
    stacks: dict[Any, list[SharedLinear]] = {}
    for layer in layers:
        stacks.setdefault(layer.stack_key, []).append(layer)
    weights: dict[SharedLinear, torch.Tensor] = {}
    for stack in stacks.values():
        weights.update(zip(stack, compose_stack(stack, stack[0].spec()), strict=True))
    return weights
