"""Read the coefficients out of models and checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from masa_vit.layers import (
    AtomBank,
    CoefficientGenerator,
    CoefficientSource,
    SharedLinear,
    parse_bank_name,
)
from masa_vit.models.sharing_args import PROJECTIONS

_BANK_KEY = re.compile(r'^(?:.*\.)?banks\.(?P<name>\w+)\.atoms$')

_GENERATOR_KEY = re.compile(r'^(?:.*\.)?generator\.(fc\d\.\w+)$')

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
    dictionaries = dictionary_names(source, rows)
    banks = _banks(source if isinstance(source, Mapping) else source.state_dict(keep_vars=True))
    return {
        name: _place(
            of_name,
            sorted(layers for key, layers in banks if layers and key == dictionaries.get(name)),
        )
        for name, of_name in rows.items()
    }


def dictionary_names(
    source: nn.Module | Mapping[str, torch.Tensor], projections: Iterable[str]
) -> dict[str, str]:
    """Say which dictionary each of some projections draws on, as far as that can be told.

    Modules say it; in a state dict the dictionary has the projection's name or, for the letters of
    attention (q, k, v, o), is named by the letters of all that draw on it.
    """
    if isinstance(source, nn.Module):
        names = {
            bank: parse_bank_name(path.rpartition('.')[2])[0]
            for path, bank in source.named_modules()
            if isinstance(bank, AtomBank)
        }
        layers = [module for module in source.modules() if isinstance(module, SharedLinear)]
        drawn = {name: bank for layer in layers for name, bank in layer.banks.items()}
        return {name: names[drawn[name]] for name in projections if drawn.get(name) in names}
    keys = [key for key, _ in _banks(source)]
    found = {}
    for name in projections:
        letters = [
            key for key in keys if name in PROJECTIONS and {*name} <= {*key} <= {*PROJECTIONS}
        ]
        if matches := [key for key in keys if key == name] or letters:
            found[name] = matches[0]
    return found


def _banks(state: Mapping[str, torch.Tensor]) -> list[tuple[str, tuple[int, ...] | None]]:
    """The dictionary and the layers of every bank in a state dict."""
    return [parse_bank_name(match['name']) for key in state if (match := _BANK_KEY.match(key))]


def count_coefficients(source: nn.Module | Mapping[str, torch.Tensor]) -> int:
    """Count the numbers that are stored for C: itself, or embeddings and the MLP that makes it."""
    state = source if isinstance(source, Mapping) else source.state_dict(keep_vars=True)
    return sum(
        value.numel()
        for key, value in state.items()
        if _COEF_KEY.match(key) or _GENERATOR_KEY.match(key)
    )


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
            f'several stacks of blocks share weights: {sorted(stacks)}. Only one can be read; of a '
            'module or state dict that holds several models, give one of them'
        )


def _generator_of_state_dict(state_dict: Mapping[str, torch.Tensor]) -> CoefficientGenerator:
    """Rebuild the coefficient MLP; S of each projection is that of its dictionary."""
    weights: dict[str, torch.Tensor] = {}
    num_atoms: dict[str, int] = {}
    for key, value in state_dict.items():
        if match := _GENERATOR_KEY.match(key):
            weights[match[1]] = value
        elif match := _BANK_KEY.match(key):
            letters = parse_bank_name(match['name'])[0]
            if not {*letters} <= {*PROJECTIONS}:
                raise ValueError(
                    f'the coefficients of dictionary {letters!r} come from an MLP, and its state '
                    'dict does not say for which projections: give the model'
                )
            num_atoms.update(dict.fromkeys(letters, value.shape[0]))
    hidden_dim, embed_dim = weights['fc1.weight'].shape
    ordered = {name: num_atoms[name] for name in sorted(num_atoms, key=PROJECTIONS.index)}
    generator = CoefficientGenerator(ordered, embed_dim, hidden_dim, device='meta')
    generator.load_state_dict(weights, assign=True)
    return generator
