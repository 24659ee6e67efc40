"""The users of a bank: projections and layers, and the name of a bank in a state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

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
