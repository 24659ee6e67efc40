"""A linear map whose weight is composed from atoms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from masa_vit.layers.atoms import AtomBank
from masa_vit.layers.autograd import LayerLinear, Part, Spec, compose_layer
from masa_vit.layers.coefficients import CoefficientSource
from masa_vit.layers.composition import apply_in_pass
from masa_vit.layers.context import autocast_dtype, cast_for, no_autocast, runs_eagerly

Names = Sequence[str] | Mapping[str, int]
"""Projections stacked along the output of a linear: equal parts, or name -> number of rows."""


@torch.fx.wrap  # one node for every fx tracer, as `compose`
def multiply(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Multiply U (out, k) and V (k, in) in their own dtype, even under autocast."""
    with no_autocast(up.device):
        return up @ down


class SharedLinear(nn.Module):
    """A linear map whose weight is composed from atom banks at every forward pass.

    It stands where a dense `torch.nn.Linear` stood and may serve several projections stacked along
    the output, as timm's fused `qkv` does. Projections left out of sharing keep a dense weight of
    their own (`dense_<name>`). The bias belongs to the layer.

    Banks and coefficients belong to the model and the block. A layer or block copied or moved by
    itself takes a copy of its banks along, respectively leaves them where they are: copy and move
    whole models. For the same reason another bank is not put in place by assigning it to the model
    (write into `bank.atoms`), nor another source of coefficients without
    `draw_on`. `torch.nn.DataParallel` does not copy whole models, so use DistributedDataParallel.
    """

    def __init__(
        self,
        linear: nn.Linear,
        names: Names,
        banks: Mapping[str, AtomBank],
        coef: CoefficientSource,
        ranks: Mapping[str, int] | None = None,
    ) -> None:
        """Take the place of `linear`, whose output stacks the projections `names`.

        Args:
            linear: The dense layer; its bias is taken over, and the rows of its weight that
                belong to projections without a bank.
            names: Projections in the order of the rows of the weight.
            banks: Projection name -> its bank, for the projections that share.
            coef: The block's source of coefficients.
            ranks: Shared projection -> rank k >= 1 of its residual, which starts at zero.
        """
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.names = tuple(names)
        self.shared_names = tuple(name for name in names if name in banks)
        # In tuples, so that nothing is registered twice: the model owns the banks, the block `coef`.
        self._banks = tuple(banks[name] for name in self.shared_names)
        self._coef = (coef,)
        self.sizes = projection_sizes(names, linear.out_features)
        self._shape = (self.out_features, self.in_features)
        ends = [end * self.in_features for end in accumulate(self.sizes)]
        self._parts = tuple(
            Part(start, end, name in banks)
            for name, start, end in zip(names, [0, *ends[:-1]], ends, strict=True)
        )
        for name, rows in zip(names, linear.weight.detach().split(self.sizes), strict=True):
            if name not in banks:
                self.register_parameter(f'dense_{name}', nn.Parameter(rows.clone()))
        self.bias = linear.bias
        self.ranks = dict(ranks or {})
        for name, rank in self.ranks.items():
            rows = self.sizes[self.names.index(name)]
            down = linear.weight.new_empty(rank, linear.in_features)
            self.register_parameter(f'down_{name}', nn.Parameter(down))
            self.register_parameter(f'up_{name}', nn.Parameter(down.new_empty(rows, rank)))
        self.reset_residual()

    def reset_residual(self) -> None:
        """Start the residuals at zero, as LoRA starts: `up` at zero, `down` drawn like a weight."""
        for name in self.ranks:
            bound = self.in_features**-0.5
            nn.init.uniform_(self.get_parameter(f'down_{name}'), -bound, bound)
            nn.init.zeros_(self.get_parameter(f'up_{name}'))

    def compose_weight(self) -> torch.Tensor:
        """Return the weight (out_features, in_features) that this layer uses now.

        By ordinary operations, which autograd and every tracer understand.
        """
        rows = self._coef[0].rows(self.shared_names)
        shared = {
            name: bank.compose(row)
            for name, bank, row in zip(self.shared_names, self._banks, rows, strict=True)
        }
        parts = [
            shared[name] if name in shared else getattr(self, f'dense_{name}')
            for name in self.names
        ]
        weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        return weight + self.residual() if self.ranks else weight

    def residual(self) -> torch.Tensor:
        """Return the part of the weight (out_features, in_features) that is this layer's own."""
        parts = [
            multiply(getattr(self, f'up_{name}'), getattr(self, f'down_{name}'))
            if name in self.ranks
            else self.first_bank.atoms.new_zeros(size, self.in_features)
            for name, size in zip(self.names, self.sizes, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @property
    def weight(self) -> torch.Tensor:
        """The composed weight, for reading: writing into it changes no parameter."""
        return self.compose_weight()

    @property
    def banks(self) -> dict[str, AtomBank]:
        """Projection name -> the bank that it draws on."""
        return dict(zip(self.shared_names, self._banks, strict=True))

    @property
    def coef(self) -> CoefficientSource:
        """The block's source of coefficients."""
        return self._coef[0]

    def draw_on(self, source: CoefficientSource) -> None:
        """Take the coefficients from another source, which the block must own."""
        self._coef = (source,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the composed map, (..., in_features) -> (..., out_features)."""
        if not runs_eagerly(x):
            return F.linear(x, self.compose_weight(), self.bias)
        out = apply_in_pass(self, x)
        if out is None:
            out = self._apply_alone(x)
        if self.ranks:
            return out + self._apply_residual(x)
        return out

    def _apply_alone(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the map without its residual, composed for this call."""
        spec = self.spec(autocast_dtype(x))
        rows = iter(self._coef[0].rows(self.shared_names))
        tensors: list[torch.Tensor] = []
        banks = self.banks
        for name in self.names:
            if name in banks:
                tensors += [next(rows), banks[name].atoms]
            else:
                tensors.append(self.dense_rows(name))
        if not torch.is_grad_enabled():
            return F.linear(x, compose_layer(spec, tensors), self.bias)
        x, bias = cast_for(spec.dtype, x, self.bias)
        return LayerLinear.apply(x, bias, spec, *tensors)

    def _apply_residual(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the residuals in two thin products: (..., in_features) -> (..., out_features)."""
        down = torch.cat([getattr(self, f'down_{name}') for name in self.ranks])
        hidden = F.linear(x, down).split([*self.ranks.values()], dim=-1)
        of_name = dict(zip(self.ranks, hidden, strict=True))
        parts = [
            F.linear(of_name[name], getattr(self, f'up_{name}'))
            if name in of_name
            else hidden[0].new_zeros(*x.shape[:-1], size)
            for name, size in zip(self.names, self.sizes, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def dense_rows(self, name: str) -> torch.Tensor:
        """Return the rows of a projection that does not share."""
        return cast(torch.Tensor, getattr(self, f'dense_{name}'))

    def spec(self, dtype: torch.dtype | None = None) -> Spec:
        """Describe the weight for a call in `dtype` (default: that of the atoms)."""
        return Spec(self._parts, self._shape, dtype or self.first_bank.atoms.dtype)

    @property
    def first_bank(self) -> AtomBank:
        """The bank that keeps what the layers of the stack have in common."""
        return self._banks[0]

    @property
    def stack_key(self) -> Hashable:
        """Equal for layers whose weights are composed from the same banks in the same way."""
        return (self.names, *map(id, self._banks))  # no cycle through what the banks keep

    def own_tensors(self, stack: Sequence[SharedLinear]) -> list[torch.Tensor]:
        """Return what the weights of a stack are made of, besides the coefficients."""
        dense = [name for name in self.names if name not in self.shared_names]
        return [bank.atoms for bank in self._banks] + [
            layer.dense_rows(name) for layer in stack for name in dense
        ]

    def with_residual(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a copy of a composed weight with the residuals added."""
        return weight + self.residual() if self.ranks else weight.clone()

    @torch.no_grad()
    def to_linear(self, weight: torch.Tensor | None = None) -> nn.Linear:
        """Return the dense layer, composed now, or from what `composed_weights` gave (copied)."""
        weight = self.compose_weight() if weight is None else self.with_residual(weight)
        linear = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device='meta',
            dtype=weight.dtype,
        )
        linear.weight = nn.Parameter(weight)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone())
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Name the sizes in the model's printout."""
        return (
            f'in_features={self.in_features}, out_features={self.out_features}, '
            f'bias={self.bias is not None}, shared={list(self.shared_names)}'
            + (f', residual_ranks={self.ranks}' if self.ranks else '')
        )


def projection_sizes(names: Names, out_features: int) -> list[int]:
    """Number of rows of each projection in a weight with `out_features` rows."""
    if isinstance(names, Mapping):
        sizes = list(names.values())
    else:
        sizes = [out_features // len(names)] * len(names)
    if sum(sizes) != out_features:
        raise ValueError(
            f'a linear with {out_features} outputs does not stack the projections {names!r}: give '
            'the number of rows of each, as a mapping'
        )
    return sizes
