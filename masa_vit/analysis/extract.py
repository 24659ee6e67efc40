"""Read the coefficients out of models and checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from masa_vit.layers import CoefficientGenerator, CoefficientSource

_COEF_KEY = re.compile(r'^(?P<stack>(?:.*\.)?)(?P<layer>\d+)\.coef\.(?P<name>\w+)$')


def coefficients(source: nn.Module | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the matrix C of every shared projection.

    Args:
        source: A model, any module that holds one, or a state dict (no configuration needed).

    Returns:
        Projection name -> C (L, S), detached, float32, on the CPU. Empty if nothing is shared.

    Raises:
        ValueError: If `source` holds several models that share (a student and its teacher).
    """
    rows = _rows_of_module(source) if isinstance(source, nn.Module) else _rows_of_dict(source)
    if not rows:
        return {}
    return {name: torch.stack([row[name].cpu().float() for row in rows]) for name in rows[0]}


def _rows_of_module(module: nn.Module) -> list[dict[str, torch.Tensor]]:
    sources = {n: m for n, m in module.named_modules() if isinstance(m, CoefficientSource)}
    # blocks.3.coef -> blocks
    _check_one_stack({name.rpartition('.')[0].rpartition('.')[0] for name in sources})
    return [source.values() for source in sources.values()]


def _rows_of_dict(state_dict: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    layers: dict[int, dict[str, torch.Tensor]] = {}
    matches = {key: match for key in state_dict if (match := _COEF_KEY.match(key))}
    _check_one_stack({match['stack'] for match in matches.values()})
    for key, match in matches.items():
        layers.setdefault(int(match['layer']), {})[match['name']] = state_dict[key]
    rows = [layers[index] for index in sorted(layers)]
    if rows and 'embedding' in rows[0]:
        generator = _generator_of_state_dict(state_dict)
        with torch.no_grad():
            rows = [generator.rows(row['embedding']) for row in rows]
    return rows


def _check_one_stack(stacks: set[str]) -> None:
    if len(stacks) > 1:
        raise ValueError(
            f'several stacks of blocks share weights, give one of them: {sorted(stacks)}'
        )


def _generator_of_state_dict(state_dict: Mapping[str, torch.Tensor]) -> CoefficientGenerator:
    """Rebuild the coefficient MLP; S of each projection is that of its dictionary."""
    weights: dict[str, torch.Tensor] = {}
    num_atoms: dict[str, int] = {}
    for key, value in state_dict.items():
        if match := re.match(r'^(?:.*\.)?generator\.(fc\d\.\w+)$', key):
            weights[match[1]] = value
        elif match := re.match(r'^(?:.*\.)?banks\.(\w+)\.atoms$', key):
            num_atoms.update(dict.fromkeys(match[1], value.shape[0]))
    hidden_dim, embed_dim = weights['fc1.weight'].shape
    ordered = {name: num_atoms[name] for name in sorted(num_atoms, key='qkvo'.find)}
    generator = CoefficientGenerator(ordered, embed_dim, hidden_dim, device='meta')
    generator.load_state_dict(weights, assign=True)
    return generator
