"""Who composes the weights, and when.

- Inside `with composing(layers, x):`, which a model opens around its forward pass, the weights of all
  layers are composed when the first of them is called, in one product per dictionary. In evaluation
  they are kept for the next pass until a parameter changes.
- A layer that is called outside of such a pass composes its own weight, and keeps nothing: less
  memory, more work, the same numbers.
- Tracers and compilers see ordinary operations, layer by layer (`SharedLinear.compose_weight`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from masa_vit.layers.atoms import AtomBank
from masa_vit.layers.autograd import JointLinear, Spec, compose_layers
from masa_vit.layers.coefficients import coefficient_matrices
from masa_vit.layers.context import cast_for, runs_eagerly
from masa_vit.layers.workspace import Lease

if TYPE_CHECKING:
    from masa_vit.layers.sharing import SharedLinear

COMPOSITIONS = ('kept', 'joint', 'layerwise')
"""How a model composes, from the fastest to the smallest.

- 'kept': all layers at once; in evaluation the weights stay until a parameter changes.
- 'joint': all layers at once, in every forward pass.
- 'layerwise': each layer when it is called, in training once more in the backward pass; no more than
  one composed weight at a time.
"""


def composing(
    layers: Sequence[SharedLinear], x: torch.Tensor, composition: str = 'kept'
) -> AbstractContextManager[Any]:
    """Open the scope of a forward pass, in which the weights of `layers` are composed together.

    Weights are kept only in evaluation mode, and only where no gradient of them is asked for. They
    are composed anew after anything that autograd sees change a parameter or buffer: optimizer
    steps, loading, edits in place; and after `train()`, `eval()`, `to()`. Two things cannot be seen,
    and need `refresh`: writing through `.data`, and the step of a fused optimizer in evaluation mode.

    Args:
        layers: The layers of the pass, of any number of stacks.
        x: An input of the pass, by which tracing is recognised.
        composition: One of `COMPOSITIONS`.
    """
    if composition == 'layerwise' or not runs_eagerly(x):
        return nullcontext()
    return _Pass(layers, keep=composition == 'kept')


def refresh(module: nn.Module) -> None:
    """Drop the composed weights that the banks in `module` keep for evaluation.

    Needed only after a change that autograd does not see: writing through `.data`, or the step of an
    optimizer with `fused=True` while the model is in evaluation mode.
    """
    for child in module.modules():
        if isinstance(child, AtomBank):
            child.refresh()


class _Composed:
    """The weights of one stack in one pass."""

    def __init__(
        self,
        layers: Sequence[SharedLinear],
        weights: Sequence[torch.Tensor],
        lease: Lease | None,
    ) -> None:
        self.weights = dict(zip(layers, enumerate(weights), strict=True))
        self.lease = lease  # None: kept weights, of which no gradient is taken

    @property
    def spent(self) -> bool:
        """Whether a backward pass, run before the scope was left, has overwritten weights."""
        return self.lease is not None and self.lease.spent

    def apply(self, layer: SharedLinear, x: torch.Tensor) -> torch.Tensor:
        index, weight = self.weights[layer]
        if self.lease is None or not torch.is_grad_enabled():
            return F.linear(x, weight, layer.bias)
        x, bias = cast_for(weight.dtype, x, layer.bias)
        return JointLinear.apply(x, weight, bias, self.lease, index)


class _Pass:
    """The scope of one forward pass: stacks are composed when a layer of them is first called."""

    def __init__(self, layers: Sequence[SharedLinear], keep: bool) -> None:
        self._stacks: dict[Any, list[SharedLinear]] = {}
        for layer in layers:
            self._stacks.setdefault(layer.stack_key, []).append(layer)
        self._keep = keep
        self._grad_enabled = torch.is_grad_enabled()
        self._composed: dict[tuple[Any, torch.dtype], _Composed] = {}
        self._coefs: dict[Any, dict[str, torch.Tensor]] = {}
        self._token: Token[_Pass | None] | None = None

    def __enter__(self) -> None:
        self._token = _current.set(self)

    def __exit__(self, *exc: object) -> None:
        if self._token is not None:
            _current.reset(self._token)

    def find(self, layer: SharedLinear, spec: Spec) -> _Composed | None:
        """The stack of `layer`, composed; None if the layer is not part of this pass."""
        key = (layer.stack_key, spec.dtype)
        composed = self._composed.get(key)
        if composed is None or composed.spent:
            layers = self._stacks.get(layer.stack_key)
            if layers is None or layer not in layers:
                return None
            # as when the pass began, not as in a region without gradients inside of it
            with torch.set_grad_enabled(self._grad_enabled):
                composed = self._composed[key] = self._compose(layers, spec)
        return composed if layer in composed.weights else None

    def _compose(self, layers: list[SharedLinear], spec: Spec) -> _Composed:
        bank = next(iter(layers[0].banks.values()))
        workspace = bank.workspace(layers[0].stack_key)
        sources = [tensor for layer in layers for tensor in layer.source_tensors()]
        wants_grad = self._grad_enabled and any(t.requires_grad for t in sources)
        if not self._keep or bank.training or wants_grad or any(t.is_inference() for t in sources):
            shape = (len(layers), spec.shape[0] * spec.shape[1])
            lease = workspace.lease(shape, spec.dtype, sources[0].device)
            return _Composed(layers, compose_layers(lease, spec, self._tensors(layers)), lease)
        key = (spec, *((id(t), t.data_ptr(), t._version) for t in sources))
        if workspace.kept is None or workspace.kept[0] != key:
            workspace.kept = None  # first, so that the old ones are freed before there are new ones
            with torch.inference_mode(False), torch.no_grad():
                workspace.kept = (key, compose_stack(layers, spec))
        return _Composed(layers, workspace.kept[1], None)

    def _tensors(self, layers: Sequence[SharedLinear]) -> list[torch.Tensor]:
        sources = tuple(layer.coef for layer in layers)
        if sources not in self._coefs:
            self._coefs[sources] = coefficient_matrices(sources)
        return stack_tensors(layers, self._coefs[sources])


_current: ContextVar[_Pass | None] = ContextVar('masa_vit_pass', default=None)


def composed_in_pass(layer: SharedLinear, spec: Spec) -> _Composed | None:
    """The weights of the pass that is running, if `layer` is part of one."""
    running = _current.get()
    return None if running is None else running.find(layer, spec)


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
        Layer -> its weight (out, in), in the dtype of the atoms.
    """
    stacks: dict[Any, list[SharedLinear]] = {}
    for layer in layers:
        stacks.setdefault(layer.stack_key, []).append(layer)
    weights: dict[SharedLinear, torch.Tensor] = {}
    for stack in stacks.values():
        spec = stack[0].spec()._replace(dtype=next(iter(stack[0].banks.values())).atoms.dtype)
        weights.update(zip(stack, compose_stack(stack, spec), strict=True))
    return weights
