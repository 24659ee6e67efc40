"""A linear layer whose weight is composed from atoms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from masa_vit.layers.bank import NOT_MATERIALIZED, AtomBank, no_autocast
from masa_vit.layers.coefficients import CoefficientSource

Names = Sequence[str] | Mapping[str, int]
"""Projections stacked along the output of a linear layer: equal parts, or name -> number of rows."""


@torch.fx.wrap  # one node in traced graphs, as `compose`
def multiply(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Multiply U (out, k) and V (k, in) in their own dtype, even under autocast."""
    with no_autocast(up.device):
        return up @ down


@torch.fx.wrap
def check_materialized(
    weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor
) -> torch.Tensor:
    """Return `weight`; RuntimeError if it or the bias is on the meta device and `x` is not."""
    if not x.is_meta and (weight.is_meta or (bias is not None and bias.is_meta)):
        raise RuntimeError(NOT_MATERIALIZED)  # `F.linear` would return garbage
    return weight


class SharedLinear(nn.Module):
    """`torch.nn.Linear` whose weight is composed from atom banks at every call.

    It may serve several projections stacked along the output, as timm's fused `qkv` does.
    Projections that do not share keep a dense weight (`dense_<name>`, (rows, in)). The bias, the
    dense weights and the low-rank residual belong to the layer, the banks to `SharedBlocks`, the
    coefficients to `owner`, the module around the layer. Banks and coefficients are looked up at
    every call, so replacing them in their place takes effect.
    """

    def __init__(
        self,
        linear: nn.Linear,
        names: Names,
        banks: nn.ModuleDict,
        bank_of: Mapping[str, str],
        owner: nn.Module,
        ranks: Mapping[str, int] | None = None,
    ) -> None:
        """Replace `linear`, whose output stacks the projections `names`.

        Args:
            linear: The dense layer. Its bias is taken over, and the rows of its weight that belong
                to projections without a bank.
            names: Projections in the order of the rows of the weight.
            banks: Name of a bank -> `AtomBank`.
            bank_of: Projection -> name of its bank, for the projections that share.
            owner: The module that holds the coefficients as `owner.coef`.
            ranks: Shared projection -> rank k >= 1 of its low-rank residual, which starts at zero.
        """
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.names = tuple(names)
        self.sizes = projection_sizes(names, linear.out_features)
        self.bank_of = dict(bank_of)
        self.ranks = dict(ranks or {})
        # In a tuple: references, not children. A state dict holds every parameter once.
        self._references: tuple[Any, Any] = (banks, owner)
        self.bias = linear.bias
        for name, rows in zip(names, linear.weight.detach().split(self.sizes), strict=True):
            if name not in bank_of:
                self.register_parameter(f'dense_{name}', nn.Parameter(rows.clone()))
            if name in self.ranks:
                down = rows.new_empty(self.ranks[name], self.in_features)
                self.register_parameter(f'down_{name}', nn.Parameter(down))
                up = rows.new_empty(len(rows), len(down))
                self.register_parameter(f'up_{name}', nn.Parameter(up))
        self.reset_residual()

    def reset_residual(self) -> None:
        """Set the residual to zero as LoRA does: `up` to zero, `down` drawn like a weight."""
        for name in self.ranks:
            bound = self.in_features**-0.5
            nn.init.uniform_(self.get_parameter(f'down_{name}'), -bound, bound)
            nn.init.zeros_(self.get_parameter(f'up_{name}'))

    @property
    def banks(self) -> dict[str, AtomBank]:
        """Projection -> the bank that it draws on."""
        return {
            name: cast(AtomBank, self._references[0][key]) for name, key in self.bank_of.items()
        }

    @property
    def coef(self) -> CoefficientSource:
        """The coefficients of the block, owned by the module around this layer."""
        return cast(CoefficientSource, self._references[1].coef)

    def compose_weight(self) -> torch.Tensor:
        """Compose the weight, (out_features, in_features).

        For timm's ``qkv``: ``owner.coef()`` gives the coefficients of q, k, v and o, (S,) each; the
        banks of q, k and v give a weight (C, C) each; the three are stacked to (3 C, C).
        """
        banks, owner = self._references
        coef = owner.coef()  # projection -> (S,)
        parts = []  # (rows, in) each
        for name in self.names:
            if name not in self.bank_of:
                parts.append(getattr(self, f'dense_{name}'))
                continue
            part = banks[self.bank_of[name]](coef[name])
            if name in self.ranks:
                part = part + multiply(getattr(self, f'up_{name}'), getattr(self, f'down_{name}'))
            parts.append(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @property
    def weight(self) -> torch.Tensor:
        """The composed weight, (out_features, in_features). Writing into it changes no parameter."""
        return self.compose_weight()

    @weight.setter
    def weight(self, value: Any) -> None:
        raise AttributeError(
            'the weight of a SharedLinear is composed: write into the atoms (banks[name].atoms) or '
            'the coefficients, or replace the layer by layer.fuse(), an ordinary nn.Linear'
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer, (..., in_features) -> (..., out_features)."""
        # not `self.weight`: `nn.Module` hides an AttributeError in a property
        return F.linear(x, check_materialized(self.compose_weight(), self.bias, x), self.bias)

    def fuse(self) -> nn.Linear:
        """Return the dense layer with the same output; timm's `reparameterize_model` calls this.

        Its weight requires gradients if the atoms, coefficients or residuals in it do.
        """
        with torch.enable_grad():
            weight = self.compose_weight()
        has_bias = self.bias is not None
        linear = nn.Linear(
            self.in_features, self.out_features, has_bias, device='meta', dtype=weight.dtype
        )
        linear.weight = nn.Parameter(weight.detach(), weight.requires_grad)
        if has_bias:
            linear.bias = nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        return linear.train(self.training)

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse TorchScript, which cannot compile the lookup of banks."""
        raise TypeError('TorchScript cannot compile shared layers: script masa_vit.fold(model)')

    def extra_repr(self) -> str:
        """Return the sizes, for the printout of a model."""
        return (
            f'in_features={self.in_features}, out_features={self.out_features}, '
            f'bias={self.bias is not None}, shared={list(self.bank_of)}'
            + (f', residual_ranks={self.ranks}' if self.ranks else '')
        )


def projection_sizes(names: Names, out_features: int) -> list[int]:
    """Return the number of rows of each projection in a weight with `out_features` rows."""
    if isinstance(names, Mapping):
        sizes = list(names.values())
    else:
        sizes = [out_features // len(names)] * len(names)
    if sum(sizes) != out_features:
        raise ValueError(
            f'a linear layer with {out_features} outputs does not stack the projections {names!r}: '
            'give the number of rows of each, as a mapping'
        )
    return sizes
