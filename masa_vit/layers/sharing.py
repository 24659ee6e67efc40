"""Replace the linear maps of a stack of blocks by maps whose weights are shared across the blocks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from masa_vit.layers.atoms import AtomBank, check_num_atoms
from masa_vit.layers.autograd import LayerLinear, Part, Spec, compose_layer
from masa_vit.layers.coefficients import (
    CoefficientGenerator,
    CoefficientSource,
    DirectCoefficients,
    FrozenCoefficients,
    MlpCoefficients,
    assign_coefficients,
    draw_coefficients,
)
from masa_vit.layers.composition import apply_in_pass
from masa_vit.layers.context import autocast_dtype, cast_for, runs_eagerly

COEFFICIENT_KINDS = ('direct', 'mlp', 'frozen')

Names = Sequence[str] | Mapping[str, int]
"""Projections stacked along the output of a linear: equal parts, or name -> number of rows."""


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
    ) -> None:
        """Take the place of `linear`, whose output stacks the projections `names`.

        Args:
            linear: The dense layer; its bias is taken over, and the rows of its weight that
                belong to projections without a bank.
            names: Projections in the order of the rows of the weight.
            banks: Projection name -> its bank, for the projections that share.
            coef: The block's source of coefficients.
        """
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.names = tuple(names)
        self.shared_names = tuple(name for name in names if name in banks)
        # In tuples, so that nothing is registered twice: the model owns the banks, the block `coef`.
        self._banks = tuple(banks[name] for name in self.shared_names)
        self._coef = (coef,)
        self.sizes = _sizes(names, linear.out_features)
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
        if out is not None:
            return out
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

    @torch.no_grad()
    def to_linear(self, weight: torch.Tensor | None = None) -> nn.Linear:
        """Return the dense layer with the weight composed once, or composed already (copied)."""
        weight = self.compose_weight() if weight is None else weight.clone()
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
        )


def share_linears(
    blocks: Sequence[nn.Module],
    layout: Mapping[str, Names],
    dictionaries: Mapping[str, Sequence[str]],
    num_atoms: int,
    coefficients: str = 'direct',
    coef: Mapping[str, torch.Tensor] | None = None,
    coef_embed_dim: int = 64,
    coef_hidden_dim: int = 64,
) -> tuple[nn.ModuleDict, CoefficientGenerator | None]:
    """Share linear maps across `blocks`, in place.

    Every linear named in `layout` becomes a `SharedLinear`, and every block gets its source of
    coefficients as `block.coef`. The caller registers what is returned on the model, once.

    Args:
        blocks: The L blocks, alike in shape.
        layout: Path of a `torch.nn.Linear` inside a block -> the projections that its output stacks,
            e.g. ``{'attn.qkv': 'qkv', 'attn.proj': 'o'}``. They are taken to be of equal size; where
            they are not (grouped queries), give rows: ``{'qkv': {'q': 64, 'k': 16, 'v': 16}}``.
        dictionaries: Dictionary name -> the projections that draw on it, e.g. ``{'qv': 'qv'}``.
            Projections in none of them stay dense.
        num_atoms: Number of atoms S of each dictionary.
        coefficients: 'direct', 'mlp' or 'frozen'.
        coef: Projection name -> C (L, S): the given coefficients, for 'frozen' only.
        coef_embed_dim: Size of the embedding of a block, for 'mlp'.
        coef_hidden_dim: Width of the MLP, for 'mlp'.

    Returns:
        The banks by dictionary name, and the generator ('mlp') or None.

    Raises:
        ValueError: For a number of atoms below 1 or above L, an unknown source or projection,
            unequal shapes.
    """
    depth = len(blocks)
    num_atoms = check_num_atoms(num_atoms)
    _check_dictionaries(dictionaries, [name for names in layout.values() for name in names])
    if num_atoms > depth:
        raise ValueError(
            f'num_atoms={num_atoms} is larger than the number of layers, {depth}: nothing would be '
            f'saved. Choose num_atoms <= {depth} (a third of the layers is the usual choice).'
        )
    bank_of = {name: key for key, names in dictionaries.items() for name in names}
    shapes = _projection_shapes(blocks, layout)
    banks = nn.ModuleDict()
    for key, names in dictionaries.items():
        first = names[0]
        for name in names[1:]:
            if shapes[name] != shapes[first]:
                raise ValueError(
                    f'projections {first!r} {shapes[first]} and {name!r} {shapes[name]} have unequal '
                    f'shapes and cannot draw on one dictionary {key!r}: give each its own.'
                )
        like = blocks[0].get_parameter(f'{_path_of(layout, first)}.weight')
        banks[key] = AtomBank(num_atoms, *shapes[first], device=like.device, dtype=like.dtype)

    shared = [name for names in layout.values() for name in names if name in bank_of]
    drawn = draw_coefficients(dictionaries, dict.fromkeys(dictionaries, num_atoms), depth)
    drawn = {name: drawn[name] for name in shared}
    like = next(banks.parameters())
    sources, generator = _build_sources(
        coefficients, drawn, coef, coef_embed_dim, coef_hidden_dim, like.device, like.dtype
    )
    for block, source in zip(blocks, sources, strict=True):
        block.coef = source
        for path, stacked in layout.items():
            of_name = {n: cast(AtomBank, banks[bank_of[n]]) for n in stacked if n in bank_of}
            if of_name:
                parent, _, child = path.rpartition('.')
                owner = block.get_submodule(parent)
                shared_linear = SharedLinear(getattr(owner, child), stacked, of_name, source)
                setattr(owner, child, shared_linear)
    return banks, generator


def _check_dictionaries(dictionaries: Mapping[str, Sequence[str]], known: list[str]) -> None:
    named = [name for names in dictionaries.values() for name in names]
    if not named or len(set(named)) < len(named) or not set(named) <= set(known):
        raise ValueError(
            f'dictionaries={dict(dictionaries)!r} is not valid, expected each to name different '
            f'projections out of {known}'
        )
    if taken := [name for name in named if hasattr(CoefficientSource, name)]:
        raise ValueError(f'projections cannot be called {taken}: the names are in use')


def _sizes(names: Names, out_features: int) -> list[int]:
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


def _path_of(layout: Mapping[str, Names], name: str) -> str:
    return next(path for path, names in layout.items() if name in names)


def _projection_shapes(
    blocks: Sequence[nn.Module], layout: Mapping[str, Names]
) -> dict[str, tuple[int, int]]:
    """Shape (out, in) of every projection, which all blocks must agree on."""
    shapes: dict[str, tuple[int, int]] = {}
    for index, block in enumerate(blocks):
        for path, names in layout.items():
            try:
                linear = block.get_submodule(path)
            except AttributeError as error:
                raise ValueError(
                    f'block {index} ({type(block).__name__}) has no {path!r}: {error}'
                ) from None
            if not isinstance(linear, nn.Linear):
                raise ValueError(
                    f'block {index}: {path!r} is a {type(linear).__name__}, expected a Linear'
                )
            for name, rows in zip(names, _sizes(names, linear.out_features), strict=True):
                shape = (rows, linear.in_features)
                if shapes.setdefault(name, shape) != shape:
                    raise ValueError(
                        f'projection {name!r} is {shape} in block {index} and {shapes[name]} before '
                        'it: only layers of equal shape can share atoms.'
                    )
    return shapes


def _build_sources(
    kind: str,
    drawn: Mapping[str, torch.Tensor],
    coef: Mapping[str, torch.Tensor] | None,
    embed_dim: int,
    hidden_dim: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[list[CoefficientSource], CoefficientGenerator | None]:
    """One source of coefficients per block: given (`coef`), or starting from those `drawn`."""
    if kind not in COEFFICIENT_KINDS:
        raise ValueError(f'coefficients={kind!r} is unknown, expected one of {COEFFICIENT_KINDS}')
    if (coef is not None) != (kind == 'frozen'):
        raise ValueError(
            "coefficients='frozen' needs the matrix C as `coef`, and the other sources take none; "
            f'got coefficients={kind!r} with coef={"None" if coef is None else "a matrix"}'
        )
    depth = len(next(iter(drawn.values())))
    if kind == 'mlp':
        num_atoms = {name: rows.shape[1] for name, rows in drawn.items()}
        generator = CoefficientGenerator(num_atoms, embed_dim, hidden_dim, device, dtype)
        generated = [MlpCoefficients(generator, device, dtype) for _ in range(depth)]
        assign_coefficients(generated, drawn)
        return list(generated), generator
    if coef is None:
        return [
            DirectCoefficients({n: c[i].to(device, dtype) for n, c in drawn.items()})
            for i in range(depth)
        ], None
    for name, rows in drawn.items():
        if name not in coef:
            raise ValueError(f'coef has no entry for projection {name!r}, only {list(coef)}')
        if coef[name].shape != rows.shape:
            raise ValueError(
                f'coef[{name!r}] has shape {tuple(coef[name].shape)}, expected (number of layers, '
                f'num_atoms) = {tuple(rows.shape)}'
            )
    return [
        FrozenCoefficients({n: coef[n][i] for n in drawn}, device, dtype) for i in range(depth)
    ], None
