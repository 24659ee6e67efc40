"""What draws on a bank: projections and layers, and the name that says so in a state dict."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from masa_vit.layers.atoms import check_num_atoms

_NAME = re.compile(r'(?P<key>\w*?[a-zA-Z]\w*?)(?:_(?P<layers>\d+(?:to\d+)?(?:_\d+(?:to\d+)?)*))?')


class Dictionary(NamedTuple):
    """The projections of some layers that draw on one bank."""

    names: Sequence[str]
    """Projections, e.g. ``('q', 'v')``."""
    layers: Sequence[int]
    """Indices of the blocks."""
    num_atoms: int
    """S."""


Dictionaries = Mapping[str, Dictionary]
"""Name of a bank -> what draws on it."""


def bank_name(key: str, layers: Sequence[int]) -> str:
    """Name the bank of a group of layers, e.g. ``q_0to3`` or, of layers 0, 5, 6 and 7, ``q_0_5to7``."""
    runs = groupby(enumerate(sorted(layers)), key=lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in ([*pairs] for _, pairs in runs)]
    return '_'.join([key, *(str(a) if a == b else f'{a}to{b}' for a, b in ends)])


def parse_bank_name(name: str) -> tuple[str, tuple[int, ...] | None]:
    """Undo `bank_name`; a name without layers, of a bank for all of them, gives None."""
    match = _NAME.fullmatch(name)
    if not match or not match['layers']:
        return name, None
    layers: list[int] = []
    for run in match['layers'].split('_'):
        first, _, last = run.partition('to')
        layers += range(int(first), int(last or first) + 1)
    return match['key'], tuple(layers)


def check_groups(groups: Iterable[Iterable[int]], num_layers: int) -> list[list[int]]:
    """Return groups given by hand as a partition in order.

    Args:
        groups: Every layer in one of them, in any order.
        num_layers: L.

    Raises:
        ValueError: For what is no list of lists of integers, an empty group, and layers that are
            missing, twice there or out of range.
    """
    try:
        lists = [sorted(group) for group in groups]
    except TypeError:
        raise ValueError(f'groups={groups!r}: expected a list of lists of layers') from None
    layers = [layer for group in lists for layer in group]
    if bad := [layer for layer in layers if type(layer) is not int]:
        raise ValueError(f'groups={lists}: expected integers, got {bad}')
    if not all(lists):
        raise ValueError(f'groups={lists}: a group without layers; leave it out')
    if beyond := sorted({layer for layer in layers if not 0 <= layer < num_layers}):
        raise ValueError(
            f'groups={lists}: there are no layers {beyond}, only 0 to {num_layers - 1}'
        )
    if twice := sorted({layer for layer in layers if layers.count(layer) > 1}):
        raise ValueError(f'groups={lists}: layers {twice} are there more than once')
    if missing := sorted(set(range(num_layers)) - set(layers)):
        raise ValueError(f'groups={lists}: layers {missing} are in no group')
    return sorted(lists)


def check_dictionaries(
    dictionaries: Mapping[str, Sequence[str] | Dictionary],
    num_atoms: int,
    num_layers: int,
    known: Sequence[str],
) -> dict[str, Dictionary]:
    """Complete the dictionaries of a stack, and check that each layer draws on one of each kind.

    Args:
        dictionaries: Name -> `Dictionary`, or the projections alone: then all layers draw on it.
        num_atoms: S of those that do not say.
        num_layers: L.
        known: The projections that there are.

    Raises:
        ValueError: For unknown or doubled projections, layers that are left out or named twice, a
            number of atoms out of range.
    """
    full = {
        key: value
        if isinstance(value, Dictionary)
        else Dictionary(tuple(value), range(num_layers), num_atoms)
        for key, value in dictionaries.items()
    }
    drawn: dict[str, list[int]] = {}
    doubled = False
    for dictionary in full.values():
        doubled |= not dictionary.names or len(set(dictionary.names)) < len(dictionary.names)
        for name in dictionary.names:
            drawn.setdefault(name, []).extend(dictionary.layers)
    whole = all(sorted(layers) == [*range(num_layers)] for layers in drawn.values())
    if not drawn or doubled or not set(drawn) <= set(known) or not whole:
        raise ValueError(
            f'dictionaries={dict(dictionaries)!r} is not valid, expected each to name different '
            f'projections out of {list(known)}, and every layer out of {num_layers} to draw on one '
            'dictionary for each projection'
        )
    return {key: _check_atoms(key, value) for key, value in full.items()}


def _check_atoms(key: str, dictionary: Dictionary) -> Dictionary:
    num_atoms = check_num_atoms(dictionary.num_atoms)
    weights = len(dictionary.layers) * len(dictionary.names)
    if num_atoms > weights:
        what = 'layers' if len(dictionary.names) == 1 else 'weights'
        raise ValueError(
            f'num_atoms={num_atoms} is larger than the number of {what}, {weights}, that share '
            f'dictionary {key!r}: nothing would be saved. Choose num_atoms <= {weights} (a third of '
            'them is the usual choice).'
        )
    return dictionary._replace(num_atoms=num_atoms)
