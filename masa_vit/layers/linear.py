"""A linear layer whose weight is composed from atoms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from masa_vit.layers.bank import NOT_MATERIALIZED, AtomBank, no_autocast
from masa_vit.layers.coefficients import CoefficientSource

Names = Sequence[str] | Mapping[str, int]
"""Projections stacked along the output of a linear layer: equal parts, or name -> number of rows.

A name that occurs twice has one weight for both parts: ``'qqv'`` ties the weights of q and k.
"""


class Repeat(NamedTuple):
    """Heads of a projection that several heads of the output use, as in grouped-query attention."""

    times: int
    """Consecutive heads of the output with the same weight."""
    rows: int
    """Rows of a head."""

    def reduce(self, weight: torch.Tensor) -> torch.Tensor:
        """Keep the first of each `times` heads: (out, in) -> (out / times, in)."""
        return weight.unflatten(0, (-1, self.times, self.rows))[:, 0].flatten(0, 1)

    def expand(self, weight: torch.Tensor) -> torch.Tensor:
        """Repeat every head: (out / times, in) -> (out, in)."""
        heads = weight.unflatten(0, (-1, self.rows))  # (heads, rows, in)
        return heads.repeat_interleave(self.times, 0).flatten(0, 1)


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

    It may serve several projections stacked along the output, as timm's fused `qkv` does. The weight
    of a projection is

    - composed from a bank, plus ``U V`` if it has a residual of rank k;
    - ``U V``, if it has a rank and no bank;
    - dense otherwise (`dense_<name>`, (rows, in)).

    The bias, the dense weights, U and V belong to the layer, the banks to `SharedBlocks`, the
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
        repeats: Mapping[str, Repeat] | None = None,
    ) -> None:
        """Replace `linear`, whose output stacks the projections `names`.

        Args:
            linear: The dense layer. Its bias is taken over, and the rows of its weight that belong
                to projections without a bank.
            names: Projections in the order of the rows of the weight.
            banks: Name of a bank -> `AtomBank`.
            bank_of: Projection -> name of its bank, for the projections that share.
            owner: The module that holds the coefficients as `owner.coef`.
            ranks: Projection -> rank k >= 1 of ``U V``. With a bank it starts at zero, without as the
                best approximation of the dense weight (spectral initialization, Khodak et al., ICLR
                2021, https://arxiv.org/abs/2105.01029).
            repeats: Projection -> heads of its weight that several heads of the output use.
        """
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.names = tuple(names)
        self.sizes = projection_sizes(names, linear.out_features)
        self.bank_of = dict(bank_of)
        self.ranks = dict(ranks or {})
        self.repeats = dict(repeats or {})
        # In a tuple: references, not children. A state dict holds every parameter once.
        self._references: tuple[Any, Any] = (banks, owner)
        self.bias = linear.bias
        for name, rows in self.parts_of(linear.weight.detach()).items():
            if name in self.ranks:
                down = rows.new_empty(self.ranks[name], self.in_features)
                self.register_parameter(f'down_{name}', nn.Parameter(down))
                up = rows.new_empty(len(rows), len(down))
                self.register_parameter(f'up_{name}', nn.Parameter(up))
            elif name not in bank_of:
                self.register_parameter(f'dense_{name}', nn.Parameter(torch.empty_like(rows)))
        self.reset_own(linear.weight.detach())

    def parts_of(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Split a dense weight (out, in): projection -> the rows that this layer would store.

        Of tied projections the first counts, of repeated heads the first of each run.
        """
        parts: dict[str, torch.Tensor] = {}
        for name, rows in zip(self.names, weight.split(self.sizes), strict=True):
            repeat = self.repeats.get(name)
            parts.setdefault(name, repeat.reduce(rows) if repeat else rows)
        return parts

    @torch.no_grad()
    def reset_own(self, weight: torch.Tensor) -> None:
        """Start the tensors of this layer from a dense weight (out, in): all but atoms and bias.

        A residual starts at zero as in LoRA: U at zero, V drawn like a weight.
        """
        for name, rows in self.parts_of(weight).items():
            if name in self.ranks:
                up, down = self.get_parameter(f'up_{name}'), self.get_parameter(f'down_{name}')
                if name in self.bank_of:
                    bound = self.in_features**-0.5
                    nn.init.uniform_(down, -bound, bound)
                    nn.init.zeros_(up)
                else:
                    _factorize(rows, up, down)
            elif name not in self.bank_of:
                self.get_parameter(f'dense_{name}').copy_(rows)

    @property
    def banks(self) -> dict[str, AtomBank]:
        """Projection -> its bank."""
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
        coef = owner.coef() if self.bank_of else {}  # projection -> (S,)
        parts: dict[str, torch.Tensor] = {}  # projection -> (rows, in)
        for name in dict.fromkeys(self.names):
            terms = []
            if name in self.bank_of:
                terms.append(banks[self.bank_of[name]](coef[name]))
            if name in self.ranks:
                terms.append(multiply(getattr(self, f'up_{name}'), getattr(self, f'down_{name}')))
            part = sum(terms[1:], terms[0]) if terms else getattr(self, f'dense_{name}')
            parts[name] = self.repeats[name].expand(part) if name in self.repeats else part
        return torch.cat([parts[name] for name in self.names]) if len(self.names) > 1 else part

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


def _factorize(weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> None:
    """Write the best approximation of `weight` (out, in) into U (out, k) and V (k, in)."""
    if weight.is_meta:
        return
    u, s, v = torch.linalg.svd(weight.cpu().double(), full_matrices=False)
    root = s[: len(down)].sqrt()
    up.copy_(u[:, : len(down)] * root)
    down.copy_(root[:, None] * v[: len(down)])


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
