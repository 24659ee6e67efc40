"""Find a timm name and arguments that create a model of the same shape."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from timm.layers import GluMlp, get_act_layer, get_norm_layer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from masa_vit.models.vision_transformer_masa import SHARINGS, SIZES

_ACTIVATIONS = ('gelu', 'gelu_tanh', 'quick_gelu', 'silu', 'relu')
_NORMS = ('layernorm', 'rmsnorm', 'simplenorm')


def masa_record(model: Any, sharing: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name a MASA architecture, and the arguments that make it this model, compressed.

    The name is the registered one that is nearest in size and sharing; whatever the model differs
    in from it, stands in the arguments: ``timm.create_model(name, **args)`` has its state dict.
    Arguments are strings and numbers where timm has a string for a module, else the module's class.

    Args:
        model: A `VisionTransformer` of timm, with `pretrained_cfg`.
        sharing: Arguments of `MasaVisionTransformer` for the sharing: `num_atoms`,
            `projections`, and `groups` and `residual_rank` if there are any.
    """
    args = vit_args(model)
    known = model.pretrained_cfg['architecture']
    size = next(
        (
            size
            for size, shape in SIZES.items()
            if known == f'vit_{size}_patch16_224' or shape.items() <= args.items()
        ),
        'base',
    )
    suffix = next((s for s, value in SHARINGS.items() if value == sharing), 'masa_s4')
    signature = inspect.signature(VisionTransformer.__init__).parameters
    of_name = {
        **{name: parameter.default for name, parameter in signature.items()},
        **SIZES[size],
        **SHARINGS[suffix],
        'norm_layer': 'layernorm',
        'norm_eps': None,
    }
    args.update(sharing)
    return f'vit_{size}_{suffix}', {k: v for k, v in args.items() if v != of_name.get(k)}


def vit_args(model: Any) -> dict[str, Any]:
    """Read the arguments of `VisionTransformer` from a model; drop rates are left out, as by timm."""
    embed, block = model.patch_embed, model.blocks[0]
    attn, mlp = block.attn, block.mlp
    has_fc_norm = _is_set(model.fc_norm)
    has_norm = has_fc_norm or _is_set(model.norm)
    pools_patches = model.global_pool in (
        'avg',
        'avgmax',
        'max',
    )  # timm's default place of the norm
    hidden = (mlp.fc1 if hasattr(mlp, 'fc1') else mlp.fc1_x).out_features
    ratio = hidden / model.embed_dim
    if int(model.embed_dim * ratio) != hidden:  # timm rounds down
        ratio = (hidden + 0.5) / model.embed_dim
    layer_scale = getattr(block, 'ls1', None)
    return {
        'img_size': _size(embed.img_size),
        'patch_size': _size(embed.patch_size),
        'in_chans': model.in_chans,
        'num_classes': model.num_classes,
        'global_pool': model.global_pool,
        'embed_dim': model.embed_dim,
        'depth': len(model.blocks),
        'num_heads': attn.num_heads,
        'mlp_ratio': ratio,
        'qkv_bias': attn.qkv.bias is not None,
        'qk_norm': _is_set(getattr(attn, 'q_norm', None)),
        'scale_attn_norm': _is_set(getattr(attn, 'norm', None)),
        'scale_mlp_norm': _is_set(getattr(mlp, 'norm', None)),
        'proj_bias': attn.proj.bias is not None,
        'init_values': getattr(layer_scale, 'init_values', 1e-5) if _is_set(layer_scale) else None,
        'class_token': model.has_class_token,
        'pos_embed': 'none' if model.pos_embed is None else 'learn',
        'no_embed_class': model.no_embed_class,
        'reg_tokens': model.num_reg_tokens,
        'pre_norm': _is_set(model.norm_pre),
        'final_norm': has_norm,
        'fc_norm': has_fc_norm if has_norm and has_fc_norm != pools_patches else None,
        'pool_include_prefix': model.pool_include_prefix,
        'dynamic_img_size': model.dynamic_img_size,
        'dynamic_img_pad': embed.dynamic_img_pad,
        'fix_init': model.fix_init,
        'embed_layer': type(embed),
        'embed_norm_layer': _norm(embed.norm) if _is_set(embed.norm) else None,
        **_norm_args(block.norm1),
        'act_layer': _activation(mlp.act),
        'block_fn': type(block),
        'mlp_layer': _mlp(mlp),
        'attn_layer': type(attn),
    }


def _is_set(module: Any) -> bool:
    return module is not None and not isinstance(module, nn.Identity)


def _size(size: Any) -> Any:
    """One number for a square."""
    return size[0] if isinstance(size, tuple) and len(set(size)) == 1 else size


def _norm_args(norm: Any) -> dict[str, Any]:
    """`norm_layer`, and `norm_eps` where timm has no name for the norm with its epsilon."""
    if type(norm) is nn.LayerNorm:  # the same function as timm's
        norm = get_norm_layer('layernorm')(norm.normalized_shape, eps=norm.eps, device='meta')
    for name in _NORMS:
        if type(norm) is get_norm_layer(name):
            named = _norm(norm) == name
            return {'norm_layer': name, 'norm_eps': None if named else norm.eps}
    return {'norm_layer': _norm(norm), 'norm_eps': None}


def _norm(norm: Any) -> Any:
    for name in _NORMS:
        layer = get_norm_layer(name)
        if type(norm) is layer and norm.eps == inspect.signature(layer).parameters['eps'].default:
            return name
    return partial(norm.__class__, eps=norm.eps) if hasattr(norm, 'eps') else norm.__class__


def _activation(act: Any) -> Any:
    if type(act) is nn.GELU and act.approximate == 'none':  # timm's default
        return None
    return next((name for name in _ACTIVATIONS if type(act) is get_act_layer(name)), act.__class__)


def _mlp(mlp: Any) -> Any:
    layer: Any = type(mlp)
    return partial(layer, gate_last=mlp.gate_last) if issubclass(layer, GluMlp) else layer
