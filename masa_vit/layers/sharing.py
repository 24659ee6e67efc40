"""Replace the linear maps of a stack of blocks by maps whose weights are shared across the blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import nn

from masa_vit.layers.atoms import AtomBank
from masa_vit.layers.coefficients import (
    CoefficientGenerator,
    CoefficientSource,
    DirectCoefficients,
    FrozenCoefficients,
    MlpCoefficients,
    assign_coefficients,
    draw_coefficients,
)
from masa_vit.layers.dictionaries import Dictionary, check_dictionaries
from masa_vit.layers.linear import Names, SharedLinear, projection_sizes

COEFFICIENT_KINDS = ('direct', 'mlp', 'frozen')


def share_linears(
    blocks: Sequence[nn.Module],
    layout: Mapping[str, Names],
    dictionaries: Mapping[str, Sequence[str] | Dictionary],
    num_atoms: int = 4,
    coefficients: str = 'direct',
    coef: Mapping[str, torch.Tensor | Sequence[torch.Tensor]] | None = None,
    coef_embed_dim: int = 64,
    coef_hidden_dim: int = 64,
    residual_ranks: Mapping[str, Sequence[int]] | None = None,
) -> tuple[nn.ModuleDict, CoefficientGenerator | None]:
    """Share linear maps across `blocks`, in place.

    Every linear named in `layout` becomes a `SharedLinear`, and every block gets its source of
    coefficients as `block.coef`. The caller registers what is returned on the model, once.

    Args:
        blocks: The L blocks, alike in shape.
        layout: Path of a `torch.nn.Linear` inside a block -> the projections that its output stacks,
            e.g. ``{'attn.qkv': 'qkv', 'attn.proj': 'o'}``. They are taken to be of equal size; where
            they are not (grouped queries), give rows: ``{'qkv': {'q': 64, 'k': 16, 'v': 16}}``.
        dictionaries: Bank name -> the projections that draw on it, e.g. ``{'qv': 'qv'}``; or a
            `Dictionary`, which names the layers and S too, for layers in groups with a bank each.
            Projections in none of them stay dense.
        num_atoms: Number of atoms S of each dictionary that does not say.
        coefficients: 'direct', 'mlp' or 'frozen'.
        coef: Projection name -> C (L, S), or its rows: the given coefficients, for 'frozen' only.
        coef_embed_dim: Size of the embedding of a block, for 'mlp'.
        coef_hidden_dim: Width of the MLP, for 'mlp'.
        residual_ranks: Projection name -> L ranks, of the part of each layer's weight that is its
            own (0: none); it starts at zero.

    Returns:
        The banks by dictionary name, and the generator ('mlp') or None.

    Raises:
        ValueError: For a number of atoms below 1 or above that of the layers that share, an unknown
            source or projection, unequal shapes, a rank out of range, blocks that share already. Nothing
            is changed then.
    """
    depth = len(blocks)
    shapes = projection_shapes(blocks, layout)
    if held := [index for index, block in enumerate(blocks) if hasattr(block, 'coef')]:
        raise ValueError(
            f'blocks {held} have a `coef` already, where their coefficients would go: share all linear '
            'maps of a block in one call'
        )
    known = list(shapes)
    full = check_dictionaries(dictionaries, num_atoms, depth, known)
    like = blocks[0].get_parameter(f'{_path_of(layout, next(iter(full.values())).names[0])}.weight')
    banks = nn.ModuleDict()
    bank_of: list[dict[str, AtomBank]] = [{} for _ in blocks]
    for key, dictionary in full.items():
        shape = _common_shape(key, dictionary, shapes)
        bank = AtomBank(dictionary.num_atoms, *shape, device=like.device, dtype=like.dtype)
        banks[key] = bank
        for layer in dictionary.layers:
            bank_of[layer].update(dict.fromkeys(dictionary.names, bank))

    shared = [name for name in known if name in bank_of[0]]
    drawn = draw_coefficients(full, depth)
    drawn = {name: drawn[name] for name in shared}
    ranks = check_ranks(residual_ranks or {}, shared, shapes, depth)
    sources, generator = _build_sources(
        coefficients, drawn, coef, coef_embed_dim, coef_hidden_dim, like.device, like.dtype
    )
    for index, (block, source) in enumerate(zip(blocks, sources, strict=True)):
        block.coef = source
        for path, stacked in layout.items():
            of_name = {n: bank_of[index][n] for n in stacked if n in bank_of[index]}
            if of_name:
                parent, _, child = path.rpartition('.')
                owner = block.get_submodule(parent)
                own_ranks = {n: ranks[n][index] for n in of_name if ranks[n][index]}
                shared_linear = SharedLinear(
                    getattr(owner, child), stacked, of_name, source, own_ranks
                )
                setattr(owner, child, shared_linear)
    return banks, generator


def read_dictionaries(
    blocks: Sequence[nn.Module], layout: Mapping[str, Names], banks: nn.ModuleDict
) -> dict[str, Dictionary]:
    """Read off a stack what draws on each bank: what `share_linears` was told."""
    users: dict[nn.Module, tuple[dict[str, None], dict[int, None]]] = {
        bank: ({}, {}) for bank in banks.values()
    }
    for index, block in enumerate(blocks):
        for path in layout:
            layer = block.get_submodule(path)
            for name, bank in layer.banks.items() if isinstance(layer, SharedLinear) else ():
                users[bank][0][name] = users[bank][1][index] = None
    return {
        key: Dictionary(tuple(users[bank][0]), tuple(users[bank][1]), bank.num_atoms)
        for key, bank in cast(Mapping[str, AtomBank], banks).items()
    }


def _common_shape(
    key: str, dictionary: Dictionary, shapes: Mapping[str, tuple[int, int]]
) -> tuple[int, int]:
    first = dictionary.names[0]
    for name in dictionary.names[1:]:
        if shapes[name] != shapes[first]:
            raise ValueError(
                f'projections {first!r} {shapes[first]} and {name!r} {shapes[name]} have unequal '
                f'shapes and cannot draw on one dictionary {key!r}: give each its own.'
            )
    return shapes[first]


def check_ranks(
    ranks: Mapping[str, Sequence[int]],
    shared: Sequence[str],
    shapes: Mapping[str, tuple[int, int]],
    depth: int,
) -> dict[str, Sequence[int]]:
    """Complete the ranks of the residuals: every shared projection, every layer."""
    if unknown := set(ranks) - set(shared):
        raise ValueError(
            f'residual ranks are given for {sorted(unknown)}, but {list(shared)} share'
        )
    for name, given in ranks.items():
        most = min(shapes[name])
        if len(given) != depth or not all(
            type(rank) is int and 0 <= rank <= most for rank in given
        ):
            raise ValueError(
                f'residual ranks of {name!r} are {list(given)}, expected {depth} integers from 0 to '
                f'{most}, one for each layer'
            )
    return {name: ranks.get(name, [0] * depth) for name in shared}


def _path_of(layout: Mapping[str, Names], name: str) -> str:
    return next(path for path, names in layout.items() if name in names)


def projection_shapes(
    blocks: Sequence[nn.Module], layout: Mapping[str, Names]
) -> dict[str, tuple[int, int]]:
    """Shape (out, in) of every projection.

    Raises:
        ValueError: If a block has not the linear maps of the layout, or other shapes than the others;
            for no blocks, or names of projections that are doubled or taken.
    """
    _check_names(blocks, layout)
    shapes: dict[str, tuple[int, int]] = {}
    for index, block in enumerate(blocks):
        for path, names in layout.items():
            try:
                linear = block.get_submodule(path)
            except AttributeError as error:
                raise ValueError(
                    f'block {index} ({type(block).__name__}) has no {path!r}: {error}'
                ) from None
            # a subclass with a forward pass of its own (LoRA, quantised weights) would lose it
            if not isinstance(linear, nn.Linear) or type(linear).forward is not nn.Linear.forward:
                raise ValueError(
                    f'block {index}: {path!r} is a {type(linear).__name__}, expected a plain Linear '
                    '(merge LoRA first)'
                )
            if not isinstance(linear._parameters.get('weight'), nn.Parameter):
                raise ValueError(
                    f'block {index}: the weight of {path!r} is not a parameter: remove its '
                    'parametrization first (torch.nn.utils.parametrize.remove_parametrizations)'
                )
            for name, rows in zip(names, projection_sizes(names, linear.out_features), strict=True):
                shape = (rows, linear.in_features)
                if shapes.setdefault(name, shape) != shape:
                    raise ValueError(
                        f'projection {name!r} is {shape} in block {index} and {shapes[name]} before '
                        'it: only layers of equal shape can share atoms.'
                    )
    return shapes


def _check_names(blocks: Sequence[nn.Module], layout: Mapping[str, Names]) -> None:
    if not len(blocks):
        raise ValueError('there are no blocks whose linear maps could share weights')
    known = [name for names in layout.values() for name in names]
    if not known or not all(map(len, layout.values())) or len(set(known)) < len(known):
        raise ValueError(
            f'layout={dict(layout)!r} is not valid, expected path of a linear map -> the projections '
            "that it stacks, each named once, as {'attn.qkv': 'qkv', 'attn.proj': 'o'} or {'gate_proj': "
            "['gate']}; the letters of a string are a projection each"
        )
    taken = CoefficientSource({}), nn.ModuleDict()
    bad = [n for n in known if not n.isidentifier() or any(hasattr(of, n) for of in taken)]
    if bad:
        raise ValueError(
            f'projections cannot be called {bad}: expected identifiers that are not in use'
        )


def _build_sources(
    kind: str,
    drawn: Mapping[str, Sequence[torch.Tensor]],
    coef: Mapping[str, torch.Tensor | Sequence[torch.Tensor]] | None,
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
        numbers = {name: {row.numel() for row in rows} for name, rows in drawn.items()}
        if any(len(of_name) > 1 for of_name in numbers.values()):
            raise ValueError(
                "coefficients='mlp' makes the same number of coefficients for every layer, and the "
                f"groups have different numbers of atoms: {numbers}. Use 'direct', or equal numbers."
            )
        num_atoms = {name: rows[0].numel() for name, rows in drawn.items()}
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
        if [row.shape for row in coef[name]] != [row.shape for row in rows]:
            raise ValueError(
                f'coef[{name!r}] has shape {_shape([*coef[name]])}, expected (number of layers, '
                f'num_atoms) = {_shape(rows)}'
            )
    return [
        FrozenCoefficients({n: coef[n][i] for n in drawn}, device, dtype) for i in range(depth)
    ], None


def _shape(rows: Sequence[torch.Tensor]) -> str:
    """The shape of C, e.g. (4, 2), or, where groups of layers differ in S, (4, 2 or 3)."""
    return f'({len(rows)}, {" or ".join(map(str, sorted({row.numel() for row in rows})))})'
