"""Undo the sharing step by step, in any module: bake the coefficients, fold the linear maps."""

from __future__ import annotations

from torch import nn

from masa_vit.layers.atoms import AtomBank
from masa_vit.layers.coefficients import (
    CoefficientGenerator,
    CoefficientSource,
    DirectCoefficients,
    MlpCoefficients,
)
from masa_vit.layers.composition import composed_weights
from masa_vit.layers.linear import SharedLinear


def bake_coefficients(module: nn.Module) -> None:
    """Replace generated coefficients by trainable ones of the same values, in place.

    Raises:
        ValueError: If a layer in `module` draws on coefficients that lie outside of it.
    """
    shared = [m for m in module.modules() if isinstance(m, SharedLinear)]
    children = [
        (parent, *child) for parent in module.modules() for child in parent.named_children()
    ]
    baked: dict[CoefficientSource, CoefficientSource] = {}
    for parent, name, child in children:
        if isinstance(child, MlpCoefficients):
            direct = DirectCoefficients(child.values()).train(child.training)
            direct.requires_grad_(child.embedding.requires_grad)
            baked[child] = direct
            setattr(parent, name, direct)
    for layer in shared:
        if isinstance(layer.coef, MlpCoefficients):
            if layer.coef not in baked:
                raise ValueError(
                    f'the coefficients of a layer lie outside of this {type(module).__name__}: bake '
                    'the whole model'
                )
            layer.draw_on(baked[layer.coef])
    for parent, name, child in children:
        if isinstance(child, CoefficientGenerator):
            setattr(parent, name, None)


def fold_linears(module: nn.Module) -> None:
    """Replace every shared linear map by the dense one, in place, and drop what it drew on."""
    children = [
        (parent, *child) for parent in module.modules() for child in parent.named_children()
    ]
    weights = composed_weights([child for *_, child in children if isinstance(child, SharedLinear)])
    for parent, name, child in children:
        if isinstance(child, SharedLinear):
            setattr(parent, name, child.to_linear(weights[child]))
    for parent, name, child in children:
        if isinstance(child, (CoefficientSource, CoefficientGenerator)) or _holds_banks(child):
            delattr(parent, name)


def _holds_banks(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.ModuleDict)
        and len(module) > 0
        and all(isinstance(child, AtomBank) for child in module.values())
    )
