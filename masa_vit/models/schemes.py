"""Sharing schemes by name: each is a set of arguments of `MasaVisionTransformer`.

``timm.create_model('vit_tiny_masa_s4', scheme='sequential')`` takes S from the name of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Settings = dict[str, Any]


def _one_hot(assigned: list[int], num_atoms: int) -> Settings:
    """Return the arguments with which layer l uses matrix ``assigned[l]`` alone."""
    coef = [[float(s == atom) for s in range(num_atoms)] for atom in assigned]  # (L, S)
    return {'coefficients': 'frozen', 'coef': coef}


def _cycle_reverse(depth: int, num_atoms: int) -> list[int]:
    """Run through the atoms, in reverse order in the last run: 0123 0123 3210."""
    assigned = [layer % num_atoms for layer in range(depth)]
    last = depth - (depth % num_atoms or num_atoms)
    return assigned[:last] + [num_atoms - 1 - atom for atom in assigned[last:]]


_SCHEMES: dict[str, tuple[str, Callable[[int, int, int], Settings]]] = {
    'masa-qkvo': ('a dictionary for each of Q, K, V, O', lambda depth, s, heads: {}),
    'masa-qkv': (
        'a dictionary for each of Q, K, V; O dense',
        lambda depth, s, heads: {'projections': 'qkv'},
    ),
    'masa-mlp': (
        'as masa-qkvo, coefficients from the MLP of the paper',
        lambda depth, s, heads: {'coefficients': 'mlp'},
    ),
    'masa-channel': (
        'as masa-qkvo, a coefficient for each output channel',
        lambda depth, s, heads: {'coefficients': 'channel'},
    ),
    'masa-fc': (
        'as masa-qkvo, and a dictionary for each of fc1, fc2',
        lambda depth, s, heads: {'mlp_num_atoms': s},
    ),
    'common-qv': (
        'a common dictionary for Q and V',
        lambda depth, s, heads: {'dictionaries': ['qv', 'k', 'o']},
    ),
    'common-qkv': (
        'a common dictionary for Q, K and V',
        lambda depth, s, heads: {'dictionaries': ['qkv', 'o']},
    ),
    'common-qkvo': (
        'a common dictionary for all',
        lambda depth, s, heads: {'dictionaries': ['qkvo']},
    ),
    'sequential': (
        'consecutive layers share a matrix: 000 111 222 333',
        lambda depth, s, heads: _one_hot([layer * s // depth for layer in range(depth)], s),
    ),
    'repeat': (
        'the matrices repeat: 0123 0123 0123',
        lambda depth, s, heads: _one_hot([layer % s for layer in range(depth)], s),
    ),
    'cycle-reverse': (
        'the last run in reverse order: 0123 0123 3210',
        lambda depth, s, heads: _one_hot(_cycle_reverse(depth, s), s),
    ),
    'single': (
        'one matrix for all layers',
        lambda depth, s, heads: {'num_atoms': 1, **_one_hot([0] * depth, 1)},
    ),
    'tied-qkv': (
        'W_Q = W_K = W_V in each layer',
        lambda depth, s, heads: {'projections': '', 'tie': 'qkv'},
    ),
    'tied-qk': (
        'W_Q = W_K in each layer',
        lambda depth, s, heads: {'projections': '', 'tie': 'qk'},
    ),
    'tied-kv': (
        'W_K = W_V in each layer',
        lambda depth, s, heads: {'projections': '', 'tie': 'kv'},
    ),
    'masa-tied-qkv': (
        'W_Q = W_K = W_V, and a dictionary for it and O',
        lambda depth, s, heads: {'tie': 'qkv'},
    ),
    'low-rank': (
        'two factors for each weight; give residual_rank',
        lambda depth, s, heads: {'num_atoms': 0},
    ),
    'gqa': (
        'two key/value heads at most (another number: num_kv_heads)',
        lambda depth, s, heads: {'projections': '', 'num_kv_heads': 2 if heads % 2 == 0 else 1},
    ),
}

SCHEMES: dict[str, str] = {name: meaning for name, (meaning, _) in _SCHEMES.items()}
"""Name of a scheme -> its meaning, for L layers and S atoms."""


def check_scheme(scheme: str) -> None:
    """Raise ValueError if the name is not in `SCHEMES`."""
    if scheme not in SCHEMES:
        raise ValueError(f'scheme={scheme!r} is unknown, expected one of {", ".join(SCHEMES)}')


def scheme_settings(scheme: str, depth: int, num_atoms: int, num_heads: int) -> Settings:
    """Return the arguments of `MasaVisionTransformer` of a scheme.

    Args:
        scheme: A name in `SCHEMES`.
        depth: L.
        num_atoms: S.
        num_heads: Heads of an attention.

    Raises:
        ValueError: If the name is unknown.
    """
    check_scheme(scheme)
    return _SCHEMES[scheme][1](depth, num_atoms, num_heads)
