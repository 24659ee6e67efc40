"""Align the heads of all layers, so that Matrix PCA captures more of their weights' energy.

The function of a layer does not depend on the order of its heads, nor on rotations inside a head:
``q -> A q, k -> A k`` keeps every attention logit, ``v -> B v, O_h -> O_h B^T`` every output, for
orthogonal A and B; biases are moved too. Trained layers order and rotate their heads at random, which
costs Matrix PCA energy. No paper does this; the method is ours.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from timm.layers import Attention
from torch import Tensor, nn

from masa_vit.compression.groups import Groups
from masa_vit.compression.source_weights import stacked_weights

ModelT = TypeVar('ModelT', bound=nn.Module)

_PAIRS = ('qk', 'vo')
"""Projections whose heads rotate together."""

_TRIAL = 2
"""Sweeps from each start, before the better one continues."""


@dataclass(frozen=True)
class Alignment:
    """New places and rotations of heads: new head h of layer l is the rotated old ``heads[l, h]``."""

    heads: Tensor
    """(L, H), int64."""
    qk: Tensor
    """A (L, H, hd, hd), orthogonal, float64, by the new heads."""
    vo: Tensor
    """B (L, H, hd, hd), likewise."""
    energy: tuple[float, ...] = ()
    """Share of the weights' energy that the atoms capture, at the start and after each sweep."""

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
        maps = {'q': self.qk, 'k': self.qk, 'v': self.vo, 'o': self.vo}
        layers = torch.arange(len(self.heads))[:, None]
        return {name: maps[name] @ value[layers, self.heads] for name, value in rows.items()}


class Allowed(NamedTuple):
    """The rotations that the attention of a model allows; the order of heads is always free."""

    num_heads: int
    rotate_qk: bool
    rotate_vo: bool
    reasons: tuple[str, ...]
    """Reasons for those that are not allowed."""


def split_heads(weights: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """Return the rows of heads, float64, on the CPU: (L, H, hd, in), of 'o' the columns.

    Args:
        weights: 'q', 'k', 'v' (L, H * hd, in) and 'o' (L, out, H * hd).
        num_heads: H.
    """
    rows = {name: weights[name].detach().cpu().double() for name in 'qkvo'}
    rows['o'] = rows['o'].mT
    return {name: value.unflatten(1, (num_heads, -1)) for name, value in rows.items()}


def allowed(model: nn.Module) -> Allowed:
    """Return the rotations that the attention of a dense `VisionTransformer` of timm allows.

    Raises:
        ValueError: If a block's attention is not `timm.layers.Attention`, or of another shape.
    """
    layers = _attentions(model)
    reasons = {'qk': '', 'vo': ''}
    for name, pair, reason in (
        ('q_norm', 'qk', 'Q and K are not rotated: attn.q_norm normalizes the queries'),
        ('k_norm', 'qk', 'Q and K are not rotated: attn.k_norm normalizes the keys'),
        ('norm', 'vo', 'V and O are not rotated: attn.norm is between them'),
        ('gate', 'vo', 'V and O are not rotated: attn.gate scales the channels between them'),
    ):
        if any(not isinstance(getattr(x, name, None), nn.Identity | None) for x in layers):
            reasons[pair] = reason
    return Allowed(
        layers[0].num_heads,
        not reasons['qk'],
        not reasons['vo'],
        tuple(filter(None, reasons.values())),
    )


def align(
    weights: Mapping[str, Tensor],
    can: Allowed,
    num_atoms: Sequence[int],
    groups: Groups,
    projections: str = 'qkvo',
    max_iters: int = 50,
    tol: float = 1e-4,
) -> Alignment:
    """Find an alignment under which Matrix PCA captures more of the weights' energy.

    Layers take turns. For the present subspace of the PCA, the best order of a layer's heads is a linear
    assignment, and the best rotation of each a Procrustes problem. The target is the contribution of
    **the other layers** to the layer's reconstruction: its own contribution keeps its energy under any
    rotation, and would only slow the search. Every step is exact, so the energy never falls. The
    search starts twice, from the layers as they are and from all aligned to the middle layer of their
    group; the better local optimum is returned.

    Args:
        weights: 'q', 'k', 'v' (L, H * hd, in) and 'o' (L, out, H * hd), finite.
        can: The allowed rotations.
        num_atoms: S of each group.
        groups: Layers that share a dictionary.
        projections: Those that share; the others are moved too, and do not count.
        max_iters: Maximum number of sweeps over the layers.
        tol: The search stops when a sweep raises the share by less.
    """
    rows = split_heads(weights, can.num_heads)  # (L, H, hd, in) each; o is transposed
    depth, num_heads, head_dim, _ = rows['q'].shape
    free = ('qk' if can.rotate_qk else '') + ('vo' if can.rotate_vo else '')
    total = sum(float(rows[name].square().sum()) for name in projections) or 1.0
    heads = torch.arange(num_heads).repeat(depth, 1)
    eye = torch.eye(head_dim, dtype=torch.float64)
    maps = {pair: eye.repeat(depth, num_heads, 1, 1) for pair in _PAIRS}  # (L, H, hd, hd)
    histories = []
    for layers, number in zip(groups, num_atoms, strict=True):
        # a short trial of both starts; only the better one is continued
        starts = [_Search(rows, layers, number, projections, free) for _ in range(2)]
        starts[1].start_from(len(layers) // 2)
        for start in starts:
            start.ascend(min(_TRIAL, max_iters), tol * total)
        best = max(starts, key=lambda start: start.history[-1])
        best.ascend(max_iters - _TRIAL, tol * total)
        histories.append([starts[0].initial, *best.history])
        heads[layers] = best.heads
        for pair in _PAIRS:
            maps[pair][layers] = best.maps[pair]
    # a search that ended early keeps its last value
    energy = [
        sum(run[min(step, len(run) - 1)] for run in histories) / total
        for step in range(max(map(len, histories)))
    ]
    return Alignment(heads, maps['qk'], maps['vo'], tuple(energy))


def gaussian_like(weights: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Return Gaussian matrices with the shapes and norms of weights (L, out, in), as a control.

    Unequal norms by themselves raise the captured share. torch's global generator is not used.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, value in weights.items():
        norms = value.flatten(1).norm(dim=1).double().cpu()
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        drawn[name] = noise * (norms / noise.flatten(1).norm(dim=1))[:, None, None]
    return drawn


def apply_alignment(model: ModelT, alignment: Alignment) -> ModelT:
    """Return a copy of a dense model with aligned heads and the same function.

    In float32 the output agrees to 1e-5; in half precision the new weights are rounded.
    """
    weights = stacked_weights(model)
    model = copy.deepcopy(model)
    layers = _attentions(model)
    num_heads = alignment.heads.shape[1]
    moved = alignment.transform(weights)
    has_bias = layers[0].qkv.bias is not None
    if has_bias:
        biases = torch.stack([layer.qkv.bias.detach().cpu().double() for layer in layers])
        rows = biases.view(len(layers), 3, num_heads, -1, 1).unbind(1)
        biases = torch.stack([*alignment.move(dict(zip('qkv', rows, strict=True))).values()], 1)
    with torch.no_grad():
        for index, layer in enumerate(layers):
            layer.qkv.weight.copy_(torch.cat([moved[name][index] for name in 'qkv']))
            layer.proj.weight.copy_(moved['o'][index])
            if has_bias:
                layer.qkv.bias.copy_(biases[index].flatten())
            # a norm or gate between V and O has numbers for each channel of the heads
            for name, param in layer.named_parameters():
                if name.split('.')[0] in ('norm', 'gate'):
                    heads = alignment.heads[index].to(param.device)
                    param.copy_(param.unflatten(0, (num_heads, -1))[heads].flatten(0, 1))
    return model


class _Search:
    """The heads of one group of n layers during the search."""

    def __init__(
        self,
        rows: Mapping[str, Tensor],
        group: list[int],
        num_atoms: int,
        projections: str,
        free: str,
    ):
        self.rows = {name: value[group] for name, value in rows.items()}  # (n, H, hd, in)
        self.num_atoms, self.free = num_atoms, free
        # with an atom for each layer nothing is lost, and no head is moved
        self.counted = projections if num_atoms < len(group) else ''
        self.grams = {name: self._flat(name) @ self._flat(name).T for name in projections}  # (n, n)
        _, num_heads, head_dim, _ = self.rows['q'].shape
        self.heads = torch.arange(num_heads).repeat(len(group), 1)
        eye = torch.eye(head_dim, dtype=torch.float64)
        self.maps = {pair: eye.repeat(len(group), num_heads, 1, 1) for pair in _PAIRS}
        self.initial = self.energy()
        self.history: list[float] = []
        self.assign, self.done = True, False

    def energy(self) -> float:
        """Return the sum of the eigenvalues that the atoms capture."""
        return sum(
            float(torch.linalg.eigvalsh(gram)[-self.num_atoms :].clamp(min=0).sum())
            for gram in self.grams.values()
        )

    def start_from(self, reference: int) -> None:
        """Align every layer to one of them."""
        for layer in range(len(self.heads)):
            if layer != reference:
                target = {name: self.rows[name][reference] for name in self.counted}
                self._move(layer, target, assign=True)

    def ascend(self, sweeps: int, gain: float) -> None:
        """Sweep over the layers, at most `sweeps` times, until a sweep gains less than `gain`."""
        self.history = self.history or [self.energy()]
        for _ in range(sweeps):
            if self.done:
                break
            moves = [self._move(i, self._target(i), self.assign) for i in range(len(self.heads))]
            self.history.append(self.energy())
            settled = self.history[-1] - self.history[-2] < gain
            self.done = self.assign and settled and not any(moves)
            # assignment costs H times as much as rotation: skip it while no head moves
            self.assign = any(moves) or settled

    def _flat(self, name: str) -> Tensor:
        return self.rows[name].flatten(1)

    def _target(self, layer: int) -> dict[str, Tensor]:
        """Return the other layers' part in the reconstruction of one, (H, hd, in) by projection."""
        target = {}
        for name in self.counted:
            kept = torch.linalg.eigh(self.grams[name])[1][:, -self.num_atoms :]  # (n, S)
            weight = kept @ kept[layer]  # row `layer` of the projector onto the atoms, (n,)
            weight[layer] = 0
            target[name] = (weight @ self._flat(name)).view_as(self.rows[name][layer])
        return target

    def _move(self, layer: int, target: Mapping[str, Tensor], assign: bool) -> bool:
        """Move the heads of a layer to the best agreement with the target; return if any moved."""
        here = torch.arange(self.heads.shape[1])
        order = self._order(layer, target) if assign else here
        if moved := not torch.equal(order, here):
            for values in (*self.rows.values(), *self.maps.values(), self.heads):
                values[layer] = values[layer, order]
        for pair in _PAIRS:
            names = [name for name in pair if name in target]
            if pair in self.free and names:
                # both projections of a pair turn together: Q_h^T K_h and O_h V_h do not change
                inner = torch.stack([target[name] @ self.rows[name][layer].mT for name in names])
                left, _, right = torch.linalg.svd(inner.sum(0))  # Procrustes
                for values in (*(self.rows[name] for name in pair), self.maps[pair]):
                    values[layer] = left @ right @ values[layer]
        # only the products with this layer have changed
        for name, gram in self.grams.items():
            gram[layer] = gram[:, layer] = self._flat(name) @ self._flat(name)[layer]
        return moved

    def _order(self, layer: int, target: Mapping[str, Tensor]) -> Tensor:
        """Return the old head for each place."""
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError:
            raise ImportError('aligning needs scipy: pip install "masa-vit[train]"') from None
        num_heads, head_dim = self.rows['q'].shape[1:3]
        gains = torch.zeros(num_heads, num_heads, dtype=torch.float64)  # (place, old head)
        for pair in _PAIRS:
            names = [name for name in pair if name in target]
            pairs = [(target[name], self.rows[name][layer]) for name in names]
            if pair in self.free and names:
                # float32: most of the work, and a choice needs no more
                inner = torch.zeros(num_heads * head_dim, num_heads * head_dim)
                for x, y in pairs:
                    inner.addmm_(x.flatten(0, 1).float(), y.flatten(0, 1).float().T)
                blocks = inner.view(num_heads, head_dim, num_heads, head_dim)
                # the nuclear norm is the inner product after the best rotation
                gains += torch.linalg.svdvals(blocks.transpose(1, 2)).sum(-1)
            else:
                for x, y in pairs:
                    gains += x.flatten(1) @ y.flatten(1).T
        here = torch.arange(num_heads)
        order = torch.as_tensor(linear_sum_assignment(gains.numpy(), maximize=True)[1])
        better = gains[here, order].sum() - gains.trace() > 1e-5 * gains.abs().max()
        return order if better else here  # a tie, or rounding


def _attentions(model: Any) -> list[Any]:
    """Return the attention of every block, of one shape and of the kind that can be aligned."""
    layers: list[Any] = [getattr(block, 'attn', None) for block in model.blocks]
    for index, layer in enumerate(layers):
        kinds = [type(layer), type(getattr(layer, 'qkv', None)), type(getattr(layer, 'proj', None))]
        if kinds != [Attention, nn.Linear, nn.Linear]:
            raise ValueError(
                f'blocks.{index} cannot be aligned: expected attn to be timm.layers.Attention with '
                f'plain linear layers qkv and proj, got {", ".join(kind.__name__ for kind in kinds)}. '
                'Compress without align'
            )
    shapes = [(x.num_heads, x.qkv.weight.shape, x.qkv.bias is None) for x in layers]
    if odd := [index for index, shape in enumerate(shapes) if shape != shapes[0]]:
        raise ValueError(f'align needs attention layers of one shape: blocks {odd} differ from 0')
    return layers
