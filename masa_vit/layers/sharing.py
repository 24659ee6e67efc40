"""Replace the linear maps of a stack of blocks by maps whose weights are shared across the blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import nn

from masa_vit.layers.atoms import AtomBank, check_num_atoms
from masa_vit.layers.coefficients import (
    CoefficientGenerator,
    CoefficientSource,
    DirectCoefficients,
    FrozenCoefficients,
    MlpCoefficients,
    assign_coefficients,
    draw_coefficients,
)
from masa_vit.layers.linear import Names, SharedLinear, projection_sizes

COEFFICIENT_KINDS = ('direct', 'mlp', 'frozen')


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
            for name, rows in zip(names, projection_sizes(names, linear.out_features), strict=True):
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
