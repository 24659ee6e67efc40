"""Share the weights of linear layers across a stack of blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from masa_vit.layers.bank import AtomBank
from masa_vit.layers.blocks import SharedBlocks
from masa_vit.layers.checks import (
    check_coefficients,
    check_dictionaries,
    check_parent,
    check_ranks,
    check_shapes,
    projection_shapes,
)
from masa_vit.layers.coefficients import (
    ChannelCoefficients,
    CoefficientGenerator,
    CoefficientSource,
    DirectCoefficients,
    FrozenCoefficients,
    MlpCoefficients,
    assign_coefficients,
    draw_coefficients,
)
from masa_vit.layers.dictionaries import Dictionary
from masa_vit.layers.linear import Names, Repeat, SharedLinear


def share_linears(
    blocks: Iterable[nn.Module],
    layout: Mapping[str, Names],
    dictionaries: Mapping[str, Sequence[str] | Dictionary],
    num_atoms: int = 4,
    coefficients: str = 'direct',
    coef: Mapping[str, torch.Tensor | Sequence[torch.Tensor]] | None = None,
    coef_embed_dim: int = 64,
    coef_hidden_dim: int = 64,
    residual_ranks: Mapping[str, Sequence[int]] | None = None,
    repeats: Mapping[str, Repeat] | None = None,
) -> SharedBlocks:
    """Share linear layers across a stack of blocks.

    Use as ``model.blocks = share_linears(model.blocks, ...)``. Every linear layer named in `layout`
    becomes a `SharedLinear`, in place. The module around these layers (``attn`` of ``attn.qkv``) gets
    their coefficients as `coef`. The returned container owns the banks, as ``attn_banks``, and for
    'mlp' the generator, as ``attn_generator``. Call once for each such module.

    Args:
        blocks: The L blocks, of equal shapes; or a `SharedBlocks` in which other layers share.
        layout: Path of a `torch.nn.Linear` inside a block -> the projections that its output stacks,
            e.g. ``{'attn.qkv': 'qkv', 'attn.proj': 'o'}``. They are taken to be of equal size; where
            they are not (grouped queries), give rows: ``{'qkv': {'q': 64, 'k': 16, 'v': 16}}``. A name
            that occurs twice ties the weights, ``{'qkv': 'qqv'}``. All paths lie in one module.
        dictionaries: Name of a bank -> the projections that draw on it, e.g. ``{'qv': 'qv'}``; or a
            `Dictionary`, which also gives layers and S, for layers in groups with a bank each.
            Projections in none of them do not share across layers.
        num_atoms: Number of atoms S of each dictionary that does not give it.
        coefficients: 'direct', 'channel', 'mlp' or 'frozen'.
        coef: Projection -> C (L, S), or its rows: the given coefficients, for 'frozen' only.
        coef_embed_dim: Size of the embedding of a block, for 'mlp'.
        coef_hidden_dim: Width of the MLP, for 'mlp'.
        residual_ranks: Projection -> L ranks of the low-rank residual of each layer's weight
            (0: none), which starts at zero. Without a dictionary the two factors are the weight.
        repeats: Projection -> heads that several heads of the output use, ``Repeat(times, rows)``.

    Returns:
        The blocks with their atoms and, for 'mlp', the generator.

    Raises:
        ValueError: For a number of atoms below 1 or above that of the layers that share, an unknown
            source or projection, unequal shapes, a rank out of range, blocks that share already.
            Nothing is changed then.
    """
    kept = blocks.shared if isinstance(blocks, SharedBlocks) else {}
    blocks = list(blocks)
    shapes = projection_shapes(blocks, layout, repeats, allow_repeated_names=True)
    full = check_dictionaries(dictionaries, num_atoms, len(blocks), list(shapes))
    check_shapes(full, shapes)
    parent = check_parent(blocks, layout)
    bank_of = [
        {name: key for key, (names, layers, _) in full.items() if index in layers for name in names}
        for index in range(len(blocks))
    ]  # layer -> projection -> bank
    shared_names = [name for name in shapes if name in bank_of[0]]
    ranks = check_ranks(residual_ranks or {}, list(shapes), shapes, len(blocks))
    tied = any(len({*names}) < len(names) for names in layout.values())
    if not (full or tied or repeats or any(map(any, ranks.values()))):
        raise ValueError(
            f'dictionaries={dict(dictionaries)!r} is not valid: nothing would be shared; give at least '
            'one dictionary, a residual rank, repeated heads or tied projections'
        )
    drawn = draw_coefficients(full, len(blocks))
    drawn = {name: drawn[name] for name in shared_names}
    check_coefficients(coefficients, drawn, coef)

    first = blocks[0].get_parameter(f'{next(iter(layout))}.weight')
    like: dict[str, Any] = {'device': first.device, 'dtype': first.dtype}
    banks = nn.ModuleDict(
        {key: AtomBank(s, *shapes[names[0]], **like) for key, (names, _, s) in full.items()}
    )
    sources: Sequence[CoefficientSource] = ()
    generator = None
    if shared_names:
        rows = {name: shapes[name][0] for name in shared_names}
        sources, generator = _make_sources(
            coefficients, coef or drawn, rows, coef_embed_dim, coef_hidden_dim, like
        )
    for index, block in enumerate(blocks):
        owner = block.get_submodule(parent)
        if sources:
            owner.coef = sources[index].train(owner.training)
        for path, names in layout.items():
            child = path.rpartition('.')[2]
            linear = getattr(owner, child)
            of_layer = {name: bank_of[index][name] for name in names if name in shared_names}
            of_rank = {name: ranks[name][index] for name in names if ranks[name][index]}
            heads = {name: repeat for name, repeat in (repeats or {}).items() if name in names}
            if of_layer or of_rank or heads or len({*names}) < len(names):
                shared = SharedLinear(linear, names, banks, of_layer, owner, of_rank, heads)
                setattr(owner, child, shared.train(linear.training))
    prefix = f'{parent.replace(".", "_")}_' if parent else ''
    new: dict[str, nn.Module] = {f'{prefix}banks': banks}
    if generator is not None:
        new[f'{prefix}generator'] = generator
    for module in new.values():
        module.train(blocks[0].training)
    container = SharedBlocks(blocks, {**kept, **new})
    container.training = blocks[0].training
    return container


def read_dictionaries(blocks: Iterable[nn.Module]) -> dict[str, Dictionary]:
    """Return the dictionaries of a stack, as they were given to `share_linears`."""
    users: dict[str, tuple[dict[str, None], dict[int, None], int]] = {}
    for index, block in enumerate(blocks):
        for layer in block.modules():
            if isinstance(layer, SharedLinear):
                for name, bank in layer.banks.items():
                    found = users.setdefault(layer.bank_of[name], ({}, {}, bank.num_atoms))
                    found[0][name] = found[1][index] = None
    return {key: Dictionary((*names,), (*layers,), s) for key, (names, layers, s) in users.items()}


def _make_sources(
    kind: str,
    coef: Mapping[str, torch.Tensor | Sequence[torch.Tensor]],
    num_rows: Mapping[str, int],
    embed_dim: int,
    hidden_dim: int,
    like: Mapping[str, Any],
) -> tuple[Sequence[CoefficientSource], CoefficientGenerator | None]:
    """Make one source of coefficients per block, for the projections and rows of `num_rows`."""
    rows = [
        dict(zip(num_rows, of_layer, strict=True))
        for of_layer in zip(*(coef[name] for name in num_rows), strict=True)
    ]
    if kind == 'frozen':
        return [FrozenCoefficients(row, **like) for row in rows], None
    rows = [{name: c.to(**like) for name, c in row.items()} for row in rows]
    if kind == 'direct':
        return [DirectCoefficients(row) for row in rows], None
    if kind == 'channel':
        return [ChannelCoefficients(row, num_rows) for row in rows], None
    num_atoms = {name: c.numel() for name, c in rows[0].items()}
    generator = CoefficientGenerator(num_atoms, embed_dim, hidden_dim, **like)
    sources = [MlpCoefficients(generator, **like) for _ in rows]
    assign_coefficients(sources, coef)
    return sources, generator
