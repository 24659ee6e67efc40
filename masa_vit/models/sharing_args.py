"""The arguments of `MasaVisionTransformer` that choose the sharing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from masa_vit.layers import (
    Dictionary,
    Repeat,
    SharedBlocks,
    bank_name,
    check_groups,
    share_linears,
)

PROJECTIONS = 'qkvo'
"""The projections of an attention layer, in the order used everywhere."""

LAYOUT = {'attn.qkv': 'qkv', 'attn.proj': 'o'}
"""Linear layer of timm's block -> the projections that its output stacks."""

MLP_LAYOUT = {'mlp.fc1': ['fc1'], 'mlp.fc2': ['fc2']}
"""The same for the MLP of a block."""

TIES = ('', 'qk', 'kv', 'qkv')
"""Projections that have one weight inside a layer; the first of them names it."""

NumAtoms = int | Sequence[int] | Mapping[str, int | Sequence[int]]
"""S of all dictionaries, of each group of layers, or a dict from dictionary to one or the other."""

ResidualRank = int | Mapping[str, int | Sequence[int]]
"""k of all projections, or a dict from letter to k of all layers, or to a list of one per layer."""


def share_blocks(
    blocks: Any,
    *,
    num_atoms: NumAtoms,
    projections: str | Sequence[str],
    dictionaries: Sequence[str] | None,
    groups: Sequence[Sequence[int]] | None,
    residual_rank: ResidualRank,
    mlp_num_atoms: int,
    tie: str,
    num_kv_heads: int | None,
    coefficients: str,
    coef: Any,
    coef_embed_dim: int,
    coef_hidden_dim: int,
) -> SharedBlocks:
    """Share the attention and the MLP of timm's blocks; arguments as `MasaVisionTransformer`.

    Raises:
        ValueError: For a value outside its range, or arguments that share nothing.
    """
    depth = len(blocks)
    layout = parse_tie(tie)
    name_of = dict(zip('qkvo', ''.join(layout.values()), strict=True))  # tied: the first
    letters = parse_projections(projections) if projections else ''
    chosen = {name_of[name] for name in letters}
    projections = ''.join(name for name in PROJECTIONS if name in chosen)
    full = parse_dictionaries(dictionaries, projections, num_atoms, groups, depth)
    ranks = parse_residual_rank(residual_rank, projections, depth)
    with_atoms = {name for dictionary in full.values() for name in dictionary.names}
    if missing := [n for n in projections if n not in with_atoms and not all(ranks[n])]:
        raise ValueError(
            f'num_atoms=0 for {missing} needs a residual_rank of at least 1 in every layer, got '
            f'{[ranks[name] for name in missing]}'
        )
    repeats = parse_kv_heads(num_kv_heads, blocks[0], layout['attn.qkv'])
    source: dict[str, Any] = {'coefficients': coefficients}
    if full or ranks or repeats or tie:
        blocks = share_linears(
            blocks,
            layout,
            full,
            **source,
            coef=None if coef is None else parse_coef(coef, projections),
            coef_embed_dim=coef_embed_dim,
            coef_hidden_dim=coef_hidden_dim,
            residual_ranks=ranks,
            repeats=repeats,
        )
    if mlp_num_atoms:
        if coefficients == 'mlp':
            raise ValueError(
                f"mlp_num_atoms={mlp_num_atoms} and coefficients='mlp': the coefficient MLP serves the "
                "attention only; choose 'direct', 'channel' or 'frozen'"
            )
        names = [name for of_layer in MLP_LAYOUT.values() for name in of_layer]
        blocks = share_linears(
            blocks,
            MLP_LAYOUT,
            {name: [name] for name in names},
            mlp_num_atoms,
            **source,
            coef=None if coef is None else parse_coef(coef, names),
        )
    if not isinstance(blocks, SharedBlocks):
        raise ValueError(
            "projections='' shares nothing: choose projections, tie, num_kv_heads or mlp_num_atoms"
        )
    return blocks


def parse_projections(projections: str | Sequence[str]) -> str:
    """Check a choice of projections, and put them in order.

    Raises:
        ValueError: If they are not different letters out of `PROJECTIONS`.
    """
    letters = list(projections)
    if not letters or len(set(letters)) != len(letters) or not set(letters) <= set(PROJECTIONS):
        raise ValueError(
            f'projections={projections!r} is not valid, expected different letters out of '
            f"{PROJECTIONS!r}, e.g. 'qkvo' or 'qkv'"
        )
    return ''.join(name for name in PROJECTIONS if name in letters)


def parse_tie(tie: str) -> dict[str, str]:
    """Return the layout of the attention with tied projections: ``'qk'`` -> ``'qqv'``.

    Raises:
        ValueError: If `tie` is not one of `TIES`.
    """
    if tie not in TIES:
        raise ValueError(f'tie={tie!r} is not valid, expected one of {TIES}')
    return {
        path: ''.join(tie[0] if name in tie else name for name in names)
        for path, names in LAYOUT.items()
    }


def parse_kv_heads(num_kv_heads: int | None, block: Any, names: str) -> dict[str, Repeat]:
    """Return the repeated heads of grouped-query attention.

    Args:
        num_kv_heads: Heads of K and V; None or all heads: nothing is repeated.
        block: timm's block.
        names: Projections of the layer, tied ones by one name.

    Raises:
        ValueError: If `num_kv_heads` does not divide the heads, or K or V is tied to Q.
    """
    if num_kv_heads is None:
        return {}
    heads = block.attn.num_heads
    if num_kv_heads == heads:
        return {}
    if type(num_kv_heads) is not int or num_kv_heads < 1 or heads % num_kv_heads:
        raise ValueError(
            f'num_kv_heads={num_kv_heads!r} is not valid, expected a divisor of num_heads={heads}'
        )
    if names[1] == 'q':
        raise ValueError(
            f'num_kv_heads={num_kv_heads} gives K fewer heads than Q: K cannot be tied to Q'
        )
    repeat = Repeat(heads // num_kv_heads, block.attn.head_dim)
    return dict.fromkeys(names[1:], repeat)


def parse_dictionaries(
    dictionaries: Sequence[str] | None,
    projections: str,
    num_atoms: NumAtoms,
    groups: Sequence[Sequence[int]] | None,
    depth: int,
) -> dict[str, Dictionary]:
    """Return the dictionaries by name.

    Raises:
        ValueError: For dictionaries, groups or numbers of atoms that do not fit together.
    """
    if dictionaries is None:
        dictionaries = list(projections)
    if isinstance(dictionaries, str) or sorted(''.join(dictionaries)) != sorted(projections):
        raise ValueError(
            f'dictionaries={dictionaries!r} is not valid, expected a list that names each shared '
            f"projection ({projections!r}) once, e.g. ('qv', 'k', 'o') for a dictionary common to "
            'q and v'
        )
    keys = [''.join(sorted(names, key=PROJECTIONS.index)) for names in dictionaries]
    parts = None if groups is None else check_groups(groups, depth)
    of_key = _by_name(num_atoms, keys, 'num_atoms', 'dictionary')
    full = {}
    for key in keys:
        numbers = _listed(
            of_key[key], len(parts or [0]), f'num_atoms of {key!r}', 'group of layers'
        )
        if set(numbers) == {0}:  # only low-rank factors
            continue
        for layers, number in zip(parts or [[*range(depth)]], numbers, strict=True):
            name = key if parts is None else bank_name(key, layers)
            full[name] = Dictionary(tuple(key), layers, number)
    return full


def parse_residual_rank(rank: ResidualRank, projections: str, depth: int) -> dict[str, list[Any]]:
    """Complete the ranks of the residuals: letter -> k of each layer.

    Raises:
        ValueError: For letters that do not share, or a list without one rank for each layer.
    """
    if isinstance(rank, Mapping):
        rank = {**dict.fromkeys(projections, 0), **rank}
    of_name = _by_name(rank, projections, 'residual_rank', 'projection')
    return {
        name: _listed(value, depth, f'residual_rank of {name!r}', 'layer')
        for name, value in of_name.items()
    }


def shortest(of_name: Mapping[str, Sequence[int]]) -> Any:
    """Return the shortest argument that the functions above parse to these lists by name."""
    short = {
        name: values[0] if len(set(values)) == 1 else list(values)
        for name, values in of_name.items()
    }
    first = next(iter(short.values()))
    same = all(value == first for value in short.values())
    return first if same and isinstance(first, int) else short


def parse_coef(coef: Any, names: Sequence[str]) -> dict[str, list[torch.Tensor]]:
    """Read C, of all projections or by name, as rows."""
    of_name = coef if isinstance(coef, Mapping) else dict.fromkeys(names, coef)
    return {
        name: [torch.as_tensor(row, dtype=torch.float32, device='cpu') for row in rows]
        for name, rows in of_name.items()
    }


def _by_name(value: Any, names: Sequence[str], argument: str, what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    if set(value) != set(names):
        raise ValueError(
            f'{argument}={dict(value)!r} is not valid, expected one entry for each {what} '
            f'({", ".join(map(repr, names))})'
        )
    return dict(value)


def _listed(value: Any, length: int, argument: str, what: str) -> list[Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return [value] * length
    if len(value) != length:
        raise ValueError(
            f'{argument} is {list(value)!r}, expected one number or {length}, one for each {what}'
        )
    return list(value)
