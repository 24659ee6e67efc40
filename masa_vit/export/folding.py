"""Fold a MASA model into the plain timm model with the same output."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.layers import get_norm_layer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from masa_vit.layers import SharedBlocks, SharedLinear, fuse_children
from masa_vit.models import create_timm_model, read_state_dict
from masa_vit.models.loading import strip_prefix
from masa_vit.models.state_dict import rename_old_keys
from masa_vit.models.vision_transformer_masa import (
    SIZES,
    MasaVisionTransformer,
    dense_architecture,
)

MASA_ARGS = {
    'scheme',
    *inspect.signature(MasaVisionTransformer.__init__).parameters,
} - set(inspect.signature(VisionTransformer.__init__).parameters)
"""Arguments that the folded model does not take."""

_CLIP, _CLIP_EPS = 'vit_base_patch16_clip_224', 1e-5
"""A CLIP tower of timm, and the epsilon of its layer norms."""


def dense_record(architecture: str, args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name the timm architecture that a MASA model folds to, and the arguments that make it this model.

    ``vit_base_masa_s4`` folds to ``vit_base_patch16_224``. timm has no argument for the epsilon of
    norms: a model with that of CLIP is timm's CLIP tower, with its sizes; for others the
    arguments hold a class, which no file can. A name that is not one of ours stays.
    """
    name = dense_architecture(architecture)
    dense = {key: value for key, value in args.items() if key not in MASA_ARGS}
    norm = dense.get('norm_layer') or 'layernorm'
    eps = args.get('norm_eps')
    if eps is None or eps == _default_eps(norm):
        return name or architecture, dense
    if name and (norm, eps) == ('layernorm', _CLIP_EPS):
        dense.pop('norm_layer', None)
        return _CLIP, {'patch_size': 16, **SIZES[name.split('_')[1]], 'pre_norm': False, **dense}
    return name or architecture, {**dense, 'norm_layer': partial(get_norm_layer(norm), eps=eps)}


def _default_eps(norm: Any) -> Any:
    eps = inspect.signature(get_norm_layer(norm)).parameters.get('eps')
    return eps.default if eps else None


def fold(model: nn.Module) -> nn.Module:
    """Return the plain timm model with the same output; `model` is left as it is.

    Every layer's weights are composed once. The result is a `VisionTransformer` of timm in every
    respect: class, state dict, `pretrained_cfg['architecture']` (``vit_base_patch16_224`` for
    ``vit_base_masa_s4``), so that it saves, loads, scripts and exports without this package.

    Args:
        model: A MASA model, any module that holds one (a classifier, a detector), or any model
            whose blocks share weights by `masa_vit.layers.share_linears`.

    Returns:
        A new module. The difference of the outputs is 0 on the same device and dtype.

    Raises:
        ValueError: If nothing in `model` is shared.
        TypeError: If a model is of a subclass of `MasaVisionTransformer`.
    """
    if not any(isinstance(module, SharedLinear) for module in model.modules()):
        raise ValueError(f'nothing is shared in this {type(model).__name__}: nothing to fold')
    for module in model.modules():
        if isinstance(module, MasaVisionTransformer) and type(module) is not MasaVisionTransformer:
            raise TypeError(
                f'fold makes a plain VisionTransformer, but {type(module).__name__} extends '
                'MasaVisionTransformer: use masa_vit.layers.fuse_children on a copy'
            )
    folded = copy.deepcopy(model)
    if isinstance(folded, (SharedBlocks, SharedLinear)):
        return folded.fuse()
    return _fold_in_place(folded)


def load_folded(
    source: str | Path,
    model_name: str = '',
    dtype: torch.dtype = torch.float32,
    **model_args: Any,
) -> nn.Module:
    """Load the file of a MASA model as the plain timm model: small file, dense speed.

    Args:
        source: A folder in timm's Hub layout, or a `.safetensors` or `.pth` file.
        model_name: For a file: the name of the MASA model, e.g. 'vit_base_masa_s4'.
        dtype: Of the folded model; its weights are composed in float32.
        model_args: Arguments of `timm.create_model`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file or folder is not that of a MASA model.
        RuntimeError: If the weights do not match the model.
    """
    is_folder = Path(source).is_dir()
    name = f'local-dir:{source}' if is_folder else model_name
    file = Path(source) / 'model.safetensors' if is_folder else source
    # composed in float32, whatever the dtype of the file is
    state = {
        key: value.float() if value.is_floating_point() else value
        for key, value in read_state_dict(file).items()
    }
    rename_old_keys(state)
    with torch.device('meta'):
        model = create_timm_model(name, model_args)
    if not isinstance(model, MasaVisionTransformer):
        raise ValueError(
            f'{name!r} is a {type(model).__name__}, expected a MASA model such as vit_base_masa_s4: '
            'a dense model is loaded by timm.create_model'
        )
    state = strip_prefix(state, model.state_dict())
    if any(key not in state for key, _ in model.named_buffers()):
        model = create_timm_model(name, model_args)  # no file holds these buffers
    model.load_state_dict(state, assign=True)
    return _fold_in_place(model).to(dtype)


def _fold_in_place(model: nn.Module) -> nn.Module:
    fuse_children(model)
    for module in list(model.modules()):
        if isinstance(module, MasaVisionTransformer):
            module.__class__ = VisionTransformer  # its other attributes are timm's
            _rename(module)
    return model


def _rename(model: Any) -> None:
    """Make the records from which timm creates the model again those of the dense model."""
    if getattr(model, 'pretrained_cfg', None):
        args = getattr(model, '_model_args', {})
        name, args = dense_record(model.pretrained_cfg['architecture'], args)
        model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, 'architecture': name}
        if hasattr(model, '_model_args'):
            # other architectures have other numbers of classes; a detector's backbone has none
            classes = getattr(model, 'num_classes', 0)
            model._model_args = {**args, 'num_classes': classes}
