"""Read the coefficients and atoms out of models and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from masa_vit.layers import SharedLinear, parse_bank_name
from masa_vit.models.sharing_args import PROJECTIONS
from masa_vit.models.state_dict import StackState, read_stack, rename_old_keys

Source = nn.Module | Mapping[str, torch.Tensor]
"""A model, any module that holds one, or a state dict (no configuration needed)."""


def stack_of(source: Source) -> StackState:
    """Read the sharing of a source; see `read_stack` for errors."""
    if isinstance(source, nn.Module):
        state = {key: value.detach() for key, value in source.state_dict(keep_vars=True).items()}
    else:
        state = dict(source)
        rename_old_keys(state)
    return read_stack(state)


def coefficients(source: Source) -> dict[str, torch.Tensor]:
    """Return the matrix C of every shared projection.

    Args:
        source: A model, any module that holds one, or a state dict.

    Returns:
        Projection -> C (L, S), detached, float32, on the CPU. Where groups of layers have their own
        banks, S counts the atoms of all groups, those of the first group first; a layer has zeros
        for the others'. Empty if nothing is shared.

    Raises:
        ValueError: If `source` holds several models that share (a student and its teacher).
    """
    stack = stack_of(source)
    rows = _rows(source, stack)
    dictionaries = dictionary_names(source, rows)
    banks = [parse_bank_name(name) for name in stack.atoms]
    return {
        name: _place(
            of_name,
            sorted(layers for key, layers in banks if layers and key == dictionaries.get(name)),
        )
        for name, of_name in rows.items()
    }


def dictionary_names(source: Source, projections: Iterable[str]) -> dict[str, str]:
    """Return projection -> name of its dictionary, as far as the source contains it.

    Modules contain it; in a state dict the dictionary has the projection's name or, for the letters of
    attention (q, k, v, o), is named by the letters of all that draw on it.
    """
    if isinstance(source, nn.Module):
        layers = [module for module in source.modules() if isinstance(module, SharedLinear)]
        keys = {name: key for layer in layers for name, key in layer.bank_of.items()}
        return {name: parse_bank_name(keys[name])[0] for name in projections if name in keys}
    keys_of_state = [parse_bank_name(name)[0] for name in stack_of(source).atoms]
    found = {}
    for name in projections:
        letters = [
            key
            for key in keys_of_state
            if name in PROJECTIONS and {*name} <= {*key} <= {*PROJECTIONS}
        ]
        if matches := [key for key in keys_of_state if key == name] or letters:
            found[name] = matches[0]
    return found


def _rows(source: Source, stack: StackState) -> dict[str, list[torch.Tensor]]:
    """Return projection -> the coefficients of every layer, float32, on the CPU."""
    if isinstance(source, nn.Module) and stack.generator:  # names of any length
        sources = {id(m.coef): m.coef for m in source.modules() if isinstance(m, SharedLinear)}
        values = [each.values() for each in sources.values()]
        rows = {name: [row[name] for row in values] for name in values[0]}
    else:
        rows = stack.coefficient_rows()
    return {name: [row.cpu().float() for row in of_name] for name, of_name in rows.items()}


def _place(rows: list[torch.Tensor], groups: list[tuple[int, ...]]) -> torch.Tensor:
    """C (L, S) with the coefficients of each group of layers in its own columns."""
    if not groups:
        return torch.stack(rows)
    numbers = [rows[layers[0]].numel() for layers in groups]
    coef = rows[0].new_zeros(len(rows), sum(numbers))
    for layers, columns in zip(groups, coef.split(numbers, dim=1), strict=True):
        for layer in layers:
            columns[layer] = rows[layer]
    return coef
