"""Build the MASA model from a dense one and the fit of its weights."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from masa_vit.compression.linears import share_solution
from masa_vit.compression.solver import Solution
from masa_vit.compression.source_weights import dense_weights
from masa_vit.export.dense_record import masa_record, vit_args
from masa_vit.layers import SharedLinear, projection_shapes
from masa_vit.models.sharing_args import LAYOUT, PROJECTIONS, shortest
from masa_vit.models.vision_transformer_masa import MasaVisionTransformer

_SOURCES = ('url', 'file', 'state_dict', 'hf_hub_id', 'hf_hub_filename', 'source')
"""Keys of timm's `pretrained_cfg` for the source of the weights."""


def check_model(model: nn.Module) -> None:
    """Raise unless `model` is a dense vision transformer of timm, with layers that can share."""
    if any(isinstance(module, SharedLinear) for module in model.modules()):
        raise ValueError(
            f'this {type(model).__name__} shares its weights already: nothing to compress; '
            'masa_vit.fold makes a dense model of it'
        )
    if type(model) is not VisionTransformer:
        raise TypeError(
            "compress takes timm's VisionTransformer itself (timm.models.vision_transformer), got "
            f'{type(model).__name__}. For a wrapper, give the model inside; subclasses and other '
            'architectures (DINOv3, ...) are compressed by masa_vit.compression.compress_linears'
        )
    projection_shapes(cast(Any, model).blocks, LAYOUT)


@torch.no_grad()
def build(model: Any, solution: Solution) -> MasaVisionTransformer:
    """Copy `model` as a MASA model with the fitted atoms, coefficients and residuals."""
    args = sharing_args(solution)
    names = args['projections']
    # the weights that atoms replace are not copied
    memo: dict[int, Any] = {}
    for block in model.blocks:
        for path, module in block.named_modules():
            if isinstance(module, nn.Linear) and set(LAYOUT.get(path, '')) & set(names):
                memo[id(module.weight)] = nn.Parameter(module.weight.to('meta'))
    masa = copy.deepcopy(model, memo)
    masa.__class__ = MasaVisionTransformer
    masa.blocks = share_solution(masa.blocks, LAYOUT, solution, dense_weights(model))
    _rename(masa, model, args)
    return masa


def sharing_args(solution: Solution) -> dict[str, Any]:
    """Return the arguments of `MasaVisionTransformer` for the sharing, in their shortest form."""
    groups, num_atoms, ranks = solution.sharing
    args: dict[str, Any] = {
        'num_atoms': shortest(num_atoms),
        'projections': ''.join(name for name in PROJECTIONS if name in num_atoms),
    }
    if len(groups) > 1:
        args['groups'] = groups
    rank = shortest(ranks)
    return args if rank == 0 else {**args, 'residual_rank': rank}


def _rename(masa: Any, model: Any, args: dict[str, Any]) -> None:
    """Write the records from which timm creates the MASA model again."""
    if not getattr(model, 'pretrained_cfg', None):
        return
    architecture, args = masa_record(model, args)
    # the source of the dense weights does not have these
    cfg = {k: None if k in _SOURCES else v for k, v in model.pretrained_cfg.items()}
    masa.pretrained_cfg = masa.default_cfg = {**cfg, 'architecture': architecture}
    kept = {k: v for k, v in getattr(model, '_model_args', {}).items() if k not in vit_args(model)}
    masa._model_args = {**kept, **args}


def without_residual(model: nn.Module) -> nn.Module:
    """Return a copy of a compressed model without its residuals."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, SharedLinear):
            for name in layer.ranks:
                nn.init.zeros_(layer.get_parameter(f'up_{name}'))
    return model
