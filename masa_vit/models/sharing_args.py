"""The arguments of `MasaVisionTransformer` that choose the sharing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from masa_vit.layers import Dictionary, bank_name, check_groups

PROJECTIONS = 'qkvo'
"""The projections of an attention layer, in the order used everywhere."""

LAYOUT = {'attn.qkv': 'qkv', 'attn.proj': 'o'}
"""Linear layer of timm's block -> the projections that its output stacks."""

NumAtoms = int | Sequence[int] | Mapping[str, int | Sequence[int]]
"""S of all dictionaries, of each group of layers, or a dict from dictionary to one or the other."""

ResidualRank = int | Mapping[str, int | Sequence[int]]
"""k of all projections, or a dict from letter to k of all layers, or to a list of one per layer."""


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


def parse_coef(coef: Any, projections: str) -> dict[str, list[torch.Tensor]]:
    """Read C, of all projections or by letter, as rows."""
    of_name = coef if isinstance(coef, Mapping) else dict.fromkeys(projections, coef)
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
