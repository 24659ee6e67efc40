"""Read the coefficients out of models and checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from masa_vit.layers import CoefficientGenerator, CoefficientSource, parse_bank_name

_BANK_KEY = re.compile(r'^(?:.*\.)?banks\.(?P<name>\w+)\.atoms$')

_COEF_KEY = re.compile(r'^(?P<stack>(?:.*\.)?)(?P<layer>\d+)\.coef\.(?P<name>\w+)$')


def coefficients(source: nn.Module | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the matrix C of every shared projection.

    Args:
        source: A model, any module that holds one, or a state dict (no configuration needed).

    Returns:
        Projection name -> C (L, S), detached, float32, on the CPU. Where groups of layers have banks
        of their own, S counts the atoms of all groups, those of the first group first; a layer has
        zeros for the others'. Empty if nothing is shared.

    Raises:
        ValueError: If `source` holds several models that share (a student and its teacher).
    """
    rows = coefficient_rows(source)
    state = source if isinstance(source, Mapping) else source.state_dict(keep_vars=True)
    banks = [parse_bank_name(match['name']) for key in state if (match := _BANK_KEY.match(key))]
    return {
        # a bank is named by the letters of its projections
        name: _place(of_name, sorted(layers for key, layers in banks if layers and name in key))
        for name, of_name in rows.items()
    }


def _place(rows: list[torch.Tensor], groups: list[tuple[int, ...]]) -> torch.Tensor:
    """C (L, S) with the coefficients of each group of layers in columns of their own."""
    if not groups:
        return torch.stack(rows)
    numbers = [rows[layers[0]].numel() for layers in groups]
    coef = rows[0].new_zeros(len(rows), sum(numbers))
    for layers, columns in zip(groups, coef.split(numbers, dim=1), strict=True):
        for layer in layers:
            columns[layer] = rows[layer]
    return coef


def coefficient_rows(
    source: nn.Module | Mapping[str, torch.Tensor],
) -> dict[str, list[torch.Tensor]]:
    """Return the coefficients of every layer: projection name -> L rows (S,), as `coefficients`.

    S differs between the rows where groups of layers do.
    """
    rows = _rows_of_module(source) if isinstance(source, nn.Module) else _rows_of_dict(source)
    return {name: [row[name].cpu().float() for row in rows] for name in (rows[0] if rows else ())}


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
        elif match := _BANK_KEY.match(key):
            num_atoms.update(dict.fromkeys(parse_bank_name(match['name'])[0], value.shape[0]))
    hidden_dim, embed_dim = weights['fc1.weight'].shape
    ordered = {name: num_atoms[name] for name in sorted(num_atoms, key='qkvo'.find)}
    generator = CoefficientGenerator(ordered, embed_dim, hidden_dim, device='meta')
    generator.load_state_dict(weights, assign=True)
    return generator
