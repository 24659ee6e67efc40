"""Models inside distributed wrappers: unwrap them, fold them for inference."""

from __future__ import annotations

from typing import cast

import torch
from mmengine.model import is_model_wrapper
from torch import nn

import masa_vit
from masa_vit.layers import SharedLinear
from masa_vit.models import MasaVisionTransformer


def unwrap(model: nn.Module) -> nn.Module:
    """The model without mmengine's distributed wrapper."""
    return cast(nn.Module, model.module) if is_model_wrapper(model) else model


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP (either of the two) has left this rank only a part of the parameters."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules()) or any(
        isinstance(parameter, DTensor) for parameter in model.parameters()
    )


def fold_for_inference(model: nn.Module) -> nn.Module:
    """Return the folded model: the same outputs, at the cost of a dense one.

    A model that cannot be folded (dense, sharded, of a subclass of `MasaVisionTransformer`) is
    returned as it is.
    """
    model = unwrap(model)
    kinds = {type(module) for module in model.modules()}
    transformers = {kind for kind in kinds if issubclass(kind, MasaVisionTransformer)}
    is_plain = transformers <= {MasaVisionTransformer}
    if SharedLinear not in kinds or not is_plain or is_sharded(model):
        return model
    return masa_vit.fold(model)
