"""Replace the linear maps of a stack of blocks by maps whose weights are shared across the blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from masa_vit.layers.atoms import AtomBank
from masa_vit.layers.coefficients import (
    CoefficientGenerator,
    CoefficientSource,
    DirectCoefficients,
    FrozenCoefficients,
    MlpCoefficients,
    assign_coefficients,
    orthogonal_coefficients,
)

COEFFICIENT_KINDS = ('direct', 'mlp', 'frozen')


class SharedLinear(nn.Module):
    """A linear map whose weight is composed from atom banks at every forward pass.

    It stands where a dense `torch.nn.Linear` stood and may serve several projections stacked along
    the output, as timm's fused `qkv` does. Projections left out of sharing keep a dense weight of
    their own (`dense_<name>`). The bias belongs to the layer.
    """

    def __init__(
        self,
        linear: nn.Linear,
        names: Sequence[str],
        banks: Mapping[str, AtomBank],
        coef: CoefficientSource,
    ) -> None:
        """Take the place of `linear`, whose output stacks the projections `names`.

        Args:
            linear: The dense layer; its bias is taken over, and the rows of its weight that
                belong to projections without a bank.
            names: Projections in the order of the rows of the weight, all of the same size.
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
        for name, rows in zip(names, linear.weight.detach().chunk(len(names)), strict=True):
            if name not in banks:
                self.register_parameter(f'dense_{name}', nn.Parameter(rows.clone()))
        self.bias = linear.bias

    def compose_weight(self) -> torch.Tensor:
        """Return the weight (out_features, in_features) that this layer uses now."""
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
        return F.linear(x, self.compose_weight(), self.bias)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """Return the dense layer with the weight composed once."""
        weight = self.compose_weight()
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
    layout: Mapping[str, Sequence[str]],
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
            e.g. ``{'attn.qkv': 'qkv', 'attn.proj': 'o'}``.
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
        ValueError: For a number of atoms below 1 or above L, an unknown source, unequal shapes.
    """
    depth = len(blocks)
    if not isinstance(num_atoms, int) or isinstance(num_atoms, bool) or num_atoms < 1:
        raise ValueError(f'num_atoms must be an integer >= 1, got {num_atoms!r}')
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

    shared = {name: num_atoms for names in layout.values() for name in names if name in bank_of}
    sources, generator = _build_sources(
        coefficients, depth, shared, coef, coef_embed_dim, coef_hidden_dim, next(banks.parameters())
    )
    for block, source in zip(blocks, sources, strict=True):
        block.coef = source
        for path, names in layout.items():
            if not any(name in bank_of for name in names):
                continue
            of_name = {n: cast(AtomBank, banks[bank_of[n]]) for n in names if n in bank_of}
            parent, _, child = path.rpartition('.')
            owner = block.get_submodule(parent)
            setattr(owner, child, SharedLinear(getattr(owner, child), names, of_name, source))
    return banks, generator


def _path_of(layout: Mapping[str, Sequence[str]], name: str) -> str:
    return next(path for path, names in layout.items() if name in names)


def _projection_shapes(
    blocks: Sequence[nn.Module], layout: Mapping[str, Sequence[str]]
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
            shape = (linear.out_features // len(names), linear.in_features)
            for name in names:
                if shapes.setdefault(name, shape) != shape:
                    raise ValueError(
                        f'projection {name!r} is {shape} in block {index} and {shapes[name]} before '
                        'it: only layers of equal shape can share atoms.'
                    )
    return shapes


def _build_sources(
    kind: str,
    depth: int,
    num_atoms: Mapping[str, int],
    coef: Mapping[str, torch.Tensor] | None,
    embed_dim: int,
    hidden_dim: int,
    like: torch.Tensor,
) -> tuple[list[CoefficientSource], CoefficientGenerator | None]:
    """One source of coefficients per block, initialised, on the device and dtype of `like`."""
    if kind not in COEFFICIENT_KINDS:
        raise ValueError(f'coefficients={kind!r} is unknown, expected one of {COEFFICIENT_KINDS}')
    if (coef is not None) != (kind == 'frozen'):
        raise ValueError(
            "coefficients='frozen' needs the matrix C as `coef`, and the other sources take none; "
            f'got coefficients={kind!r} with coef={"None" if coef is None else "a matrix"}'
        )
    device, dtype = like.device, like.dtype
    generator = None
    sources: list[CoefficientSource]
    if kind == 'mlp':
        generator = CoefficientGenerator(num_atoms, embed_dim, hidden_dim, device, dtype)
        sources = [MlpCoefficients(generator, device, dtype) for _ in range(depth)]
    else:
        if coef is None:
            coef = {name: orthogonal_coefficients(depth, num) for name, num in num_atoms.items()}
        for name, num in num_atoms.items():
            if name not in coef:
                raise ValueError(f'coef has no entry for projection {name!r}, only {list(coef)}')
            if tuple(coef[name].shape) != (depth, num):
                raise ValueError(
                    f'coef[{name!r}] has shape {tuple(coef[name].shape)}, expected (number of layers, '
                    f'num_atoms) = ({depth}, {num})'
                )
        source_cls = FrozenCoefficients if kind == 'frozen' else DirectCoefficients
        sources = [
            source_cls({n: coef[n][i].to(device=device, dtype=dtype) for n in num_atoms})
            for i in range(depth)
        ]
    if kind == 'mlp':
        targets = {name: orthogonal_coefficients(depth, num) for name, num in num_atoms.items()}
        assign_coefficients(sources, targets)
    return sources, generator
