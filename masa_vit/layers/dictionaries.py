"""Dictionaries: the projections and layers that share atoms, and their names in a state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

_NAME = re.compile(r'(?P<key>\w*?[a-zA-Z]\w*?)(?:_(?P<layers>\d+(?:to\d+)?(?:_\d+(?:to\d+)?)*))?')


class Dictionary(NamedTuple):
    """Projections of some layers with common atoms, which an `AtomBank` holds."""

    names: Sequence[str]
    """Projections, e.g. ``('q', 'v')``."""
    layers: Sequence[int]
    """Indices of the blocks."""
    num_atoms: int
    """S."""


Dictionaries = Mapping[str, Dictionary]
"""Name, as in `SharedBlocks` -> `Dictionary`."""


def bank_name(key: str, layers: Sequence[int]) -> str:
    """Return the name of a group of layers, e.g. ``q_0to3``, or ``q_0_5to7`` for layers 0, 5, 6, 7."""
    runs = groupby(enumerate(sorted(layers)), key=lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in ([*pairs] for _, pairs in runs)]
    return '_'.join([key, *(str(a) if a == b else f'{a}to{b}' for a, b in ends)])


def parse_bank_name(name: str) -> tuple[str, tuple[int, ...] | None]:
    """Return key and layers of a name made by `bank_name`; None for a name without layers."""
    match = _NAME.fullmatch(name)
    if not match or not match['layers']:
        return name, None
    layers: list[int] = []
    for run in match['layers'].split('_'):
        first, _, last = run.partition('to')
        layers += range(int(first), int(last or first) + 1)
    return match['key'], tuple(layers)
