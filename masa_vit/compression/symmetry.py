"""Symmetries of attention: move the heads of a layer, and leave its function as it is.

The heads may stand in any order, and inside a head ``q -> A q, k -> A^-T k`` keeps every attention
logit and ``v -> B v, O_h -> O_h B^-1`` every output, for invertible A and B; biases go along.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from timm.layers import Attention
from torch import Tensor, nn

from masa_vit.compression.source_weights import stacked_weights

__all__ = ['Alignment', 'Allowed', 'allowed', 'apply_alignment']

ModelT = TypeVar('ModelT', bound=nn.Module)

_RIDGE = 1e-4
"""Share of a head's mean energy per channel that each channel gets before balancing: it bounds the
condition of the maps, and so the rounding of the output."""


@dataclass(frozen=True)
class Alignment:
    """How the heads of every layer move: new head h is the mapped old head ``heads[l, h]``."""

    heads: Tensor
    """(L, H), int64."""
    qk: Tensor
    """A (L, H, hd, hd), float64, by the new heads: q becomes A q, k becomes A^-T k."""
    vo: Tensor
    """B (L, H, hd, hd), float64: v becomes B v, O_h becomes O_h B^-1."""
    energy: tuple[float, ...] = ()
    """Share of the weights' energy that the atoms capture: of the weights as they were, where the
    search began, and after each of its sweeps. From the second figure on it does not fall."""

    def transform(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the aligned weights, each in its dtype and on its device.

        Args:
            weights: 'q', 'k', 'v' (L, H * hd, in) and 'o' (L, out, H * hd).
        """
        moved = self.move(split_heads(weights, self.heads.shape[1]))
        joined = {name: value.flatten(1, 2) for name, value in moved.items()}
        joined['o'] = joined['o'].mT.contiguous()
        return {name: value.to(weights[name]) for name, value in joined.items()}

    def move(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move the rows of heads, as `split_heads` gives them, or biases (L, H, hd, 1)."""
        maps = {'q': self.qk, 'v': self.vo}
        for name, other in (('k', self.qk), ('o', self.vo)):
            maps[name] = torch.linalg.inv(other).mT  # of O_h: (O_h B^-1)^T = B^-T O_h^T
        layers = torch.arange(len(self.heads), device=self.heads.device)[:, None]
        return {name: maps[name] @ value[layers, self.heads] for name, value in rows.items()}


class Allowed(NamedTuple):
    """Which maps inside the heads of a model are allowed; permuting heads always is."""

    num_heads: int
    rotate_qk: bool
    rotate_vo: bool
    reasons: tuple[str, ...]
    """Why one is not, for the user."""


def split_heads(weights: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """Cut weights into the rows of heads, in float64 on the CPU.

    Args:
        weights: 'q', 'k', 'v' (L, H * hd, in) and 'o' (L, out, H * hd).
        num_heads: H.

    Returns:
        'q', 'k', 'v' (L, H, hd, in) and 'o' (L, H, hd, out): the rows of O transposed.

    Raises:
        ValueError: For shapes that do not fit, and weights that are not finite.
    """
    _check_weights(weights, num_heads)
    rows = {name: weights[name].detach().cpu().double() for name in 'qkvo'}
    rows['o'] = rows['o'].mT
    return {name: value.unflatten(1, (num_heads, -1)) for name, value in rows.items()}


def balance(first: Tensor, second: Tensor) -> Tensor:
    """Return the symmetric A for which ``A first`` and ``A^-1 second`` have one Gram matrix.

    ``A^2`` is the geometric mean of the second Gram matrix and the inverse of the first.
    """
    grams = []
    for rows in (first, second):
        gram = rows @ rows.mT
        mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
        grams.append(gram + _RIDGE * torch.where(mean > 0, mean, 1.0) * eye)
    root, inverse = _power(grams[0], 0.5), _power(grams[0], -0.5)
    return _power(inverse @ _power(root @ grams[1] @ root, 0.5) @ inverse, 0.5)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return (vectors * values.pow(exponent)[..., None, :]) @ vectors.mT


def allowed(model: nn.Module) -> Allowed:
    """Tell which symmetries the attention of a model has.

    Args:
        model: A dense `VisionTransformer` of timm.

    Raises:
        ValueError: If a block's attention is not the one whose symmetries are known.
    """
    layers = _attentions(model)
    reasons = {'qk': '', 'vo': ''}
    for name, pair, why in (
        ('q_norm', 'qk', 'Q and K are not rotated: attn.q_norm normalises the queries'),
        ('k_norm', 'qk', 'Q and K are not rotated: attn.k_norm normalises the keys'),
        ('norm', 'vo', 'V and O are not rotated: attn.norm stands between them'),
        ('gate', 'vo', 'V and O are not rotated: attn.gate scales the channels between them'),
    ):
        if any(not isinstance(getattr(x, name, None), nn.Identity | None) for x in layers):
            reasons[pair] = why
    return Allowed(
        layers[0].num_heads,
        rotate_qk=not reasons['qk'],
        rotate_vo=not reasons['vo'],
        reasons=tuple(filter(None, reasons.values())),
    )


def apply_alignment(model: ModelT, alignment: Alignment) -> ModelT:
    """Return a copy of a model with its heads aligned, and the same function.

    In float32 the output agrees to 1e-5; in half precision the new weights are rounded anew.

    Args:
        model: A dense `VisionTransformer` of timm.
        alignment: For its depth, and for its number and size of heads.

    Raises:
        ValueError: If the alignment does not fit, or does what the model does not allow.
    """
    can = allowed(model)
    layers = _attentions(model)
    expected = (len(layers), can.num_heads, layers[0].head_dim)
    if alignment.qk.shape[:3] != expected:
        raise ValueError(
            f'the alignment is for {tuple(alignment.qk.shape[:3])} layers, heads and channels of a '
            f'head, the model has {expected}'
        )
    eye = torch.eye(expected[2]).to(alignment.qk).expand_as(alignment.qk)
    for name, may in (('qk', can.rotate_qk), ('vo', can.rotate_vo)):
        if not may and not torch.equal(getattr(alignment, name), eye):
            raise ValueError(
                f'the alignment would change what the model computes. {"; ".join(can.reasons)}. '
                f'Search it with align(..., rotate_{name}=False)'
            )
    aligned = copy.deepcopy(model)
    _apply(_attentions(aligned), alignment, stacked_weights(model))
    return aligned


@torch.no_grad()
def _apply(layers: list[Any], alignment: Alignment, weights: Mapping[str, Tensor]) -> None:
    num_heads = alignment.heads.shape[1]
    moved = alignment.transform(weights)
    if layers[0].qkv.bias is not None:
        biases = torch.stack([layer.qkv.bias.cpu().double() for layer in layers])
        rows = biases.view(len(layers), 3, num_heads, -1, 1).unbind(1)
        biases = torch.stack(list(alignment.move(dict(zip('qkv', rows, strict=True))).values()), 1)
    for index, layer in enumerate(layers):
        layer.qkv.weight.copy_(torch.cat([moved[name][index] for name in 'qkv']))
        layer.proj.weight.copy_(moved['o'][index])
        if layer.qkv.bias is not None:
            layer.qkv.bias.copy_(biases[index].flatten())
        # What stands between V and O has numbers per channel of the heads.
        for name, param in layer.named_parameters():
            if name.split('.')[0] in ('norm', 'gate'):
                heads = alignment.heads[index].to(param.device)
                param.copy_(param.unflatten(0, (num_heads, -1))[heads].flatten(0, 1))


def _attentions(model: Any) -> list[Any]:
    """Return the attention of every block, all of one shape and of the kind that can be aligned."""
    layers: list[Any] = [getattr(block, 'attn', None) for block in getattr(model, 'blocks', ())]
    if not layers:
        raise ValueError(
            f'{type(model).__name__} has no blocks: expected a VisionTransformer of timm'
        )
    for index, layer in enumerate(layers):
        kinds = [type(layer), type(getattr(layer, 'qkv', None)), type(getattr(layer, 'proj', None))]
        if kinds != [Attention, nn.Linear, nn.Linear]:
            raise ValueError(
                f'alignment is not possible for blocks.{index}: expected attn to be '
                'timm.layers.Attention with plain linear layers qkv and proj, got '
                f'{", ".join(kind.__name__ for kind in kinds)}. Compress without alignment'
            )
    shapes = [
        (x.num_heads, *x.qkv.weight.shape, *x.proj.weight.shape, x.qkv.bias is None) for x in layers
    ]
    if odd := [index for index, shape in enumerate(shapes) if shape != shapes[0]]:
        raise ValueError(
            f'alignment needs attention layers of one shape: blocks {odd} differ from blocks.0'
        )
    return layers


def _check_weights(weights: Mapping[str, Tensor], num_heads: int) -> None:
    shapes = {name: tuple(weights[name].shape) for name in 'qkvo' if name in weights}
    sizes = [
        shapes[name][1] if name in 'qkv' else shapes[name][2]
        for name in shapes
        if len(shapes[name]) == 3
    ]
    depths = {shape[0] for shape in shapes.values()}
    if len(sizes) != 4 or len({*sizes}) != 1 or len(depths) != 1:
        raise ValueError(
            'weights: expected q, k, v of shape (L, H * hd, in) and o of shape (L, out, H * hd), got '
            f'{shapes}'
        )
    if num_heads < 1 or sizes[0] % num_heads:
        raise ValueError(
            f'num_heads={num_heads} does not divide the {sizes[0]} channels of the heads'
        )
    for name in shapes:
        finite = weights[name].isfinite().flatten(1).all(1)
        if not finite.all():
            layers = (~finite).nonzero().flatten().tolist()
            raise ValueError(f'projection {name!r}: the weights of layers {layers} are not finite')
