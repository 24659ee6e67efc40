"""Fold a MASA model into the plain timm model with the same output."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from masa_vit.layers import SharedLinear
from masa_vit.models.vision_transformer import MasaVisionTransformer, dense_architecture

_MASA_ARGS = frozenset(inspect.signature(MasaVisionTransformer.__init__).parameters) - frozenset(
    inspect.signature(VisionTransformer.__init__).parameters
)


def fold(model: nn.Module) -> nn.Module:
    """Return the plain timm model with the same output; `model` is left as it is.

    Every layer's weights are composed once. The result is a `VisionTransformer` of timm in every
    respect: class, state dict, `pretrained_cfg['architecture']` (``vit_base_patch16_224`` for
    ``vit_base_masa_s4``), so that it saves, loads, scripts and exports without this package.

    Args:
        model: A MASA model, or a module that holds some (a classifier around one).

    Returns:
        A new module. The difference of the outputs is 0 on the same device and dtype.

    Raises:
        ValueError: If nothing in `model` is shared.
    """
    if not any(isinstance(module, MasaVisionTransformer) for module in model.modules()):
        raise ValueError(
            f'{type(model).__name__} holds no MASA model: nothing is shared, nothing to fold'
        )
    folded = copy.deepcopy(model)
    for module in list(folded.modules()):
        if isinstance(module, MasaVisionTransformer):
            _fold_in_place(module)
    return folded


def _fold_in_place(model: MasaVisionTransformer) -> None:
    for block in model.blocks:
        for path, module in list(block.named_modules()):
            if isinstance(module, SharedLinear):
                block.set_submodule(path, module.to_linear())
        del block.coef
    del model.banks, model.generator
    # Without banks and generator nothing is left that timm's class does not have.
    model.__class__ = VisionTransformer
    _rename(model)


def _rename(model: Any) -> None:
    """Make the records from which timm creates the model again those of the dense model."""
    if getattr(model, 'pretrained_cfg', None):
        name = model.pretrained_cfg['architecture']
        dense = {**model.pretrained_cfg, 'architecture': dense_architecture(name)}
        model.pretrained_cfg = model.default_cfg = dense
    if hasattr(model, '_model_args'):
        model._model_args = {k: v for k, v in model._model_args.items() if k not in _MASA_ARGS}
