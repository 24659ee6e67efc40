"""Read coefficients, atoms, residuals and dense weights out of models and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from masa_vit.layers import SharedLinear, compose, parse_bank_name
from masa_vit.models.sharing_args import LAYOUT, PROJECTIONS
from masa_vit.models.state_dict import Residual, StackState, read_stack, rename_old_keys

Source = nn.Module | Mapping[str, torch.Tensor]
"""A model, any module that holds one, or a state dict (no configuration needed)."""


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
    stack = _stack_of(source)
    rows = _rows(source, stack)
    dictionaries = _dictionary_names(source, stack, rows)
    banks = [parse_bank_name(name) for name in stack.atoms]
    return {
        name: _place(
            of_name,
            sorted(layers for key, layers in banks if layers and key == dictionaries.get(name)),
        )
        for name, of_name in rows.items()
    }


def _stack_of(source: Source) -> StackState:
    if isinstance(source, nn.Module):
        state = {key: value.detach() for key, value in source.state_dict(keep_vars=True).items()}
    else:
        state = dict(source)
        rename_old_keys(state)
    return read_stack(state)


def _rows(source: Source, stack: StackState) -> dict[str, list[torch.Tensor]]:
    """Return projection -> the coefficients of every layer, float32, on the CPU."""
    if isinstance(source, nn.Module) and stack.generator:  # names of any length
        sources = {id(m.coef): m.coef for m in source.modules() if isinstance(m, SharedLinear)}
        values = [each.values() for each in sources.values()]
        rows = {name: [row[name] for row in values] for name in values[0]}
    else:
        rows = stack.coefficient_rows()
    if any(row.ndim != 1 for of_name in rows.values() for row in of_name):
        raise ValueError(
            "the model has coefficients for each output channel (coefficients='channel'); inspection "
            'needs one for each layer and atom: inspect masa_vit.fold(model) for its weights'
        )
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


def _dictionary_names(
    source: Source, stack: StackState, projections: Iterable[str]
) -> dict[str, str]:
    """Return projection -> name of its dictionary, as far as the source contains it.

    Modules contain it; in a state dict the dictionary has the projection's name or, for the letters of
    attention (q, k, v, o), is named by the letters of all that draw on it.
    """
    if isinstance(source, nn.Module):
        layers = [module for module in source.modules() if isinstance(module, SharedLinear)]
        keys = {name: key for layer in layers for name, key in layer.bank_of.items()}
        return {name: parse_bank_name(keys[name])[0] for name in projections if name in keys}
    banks = [parse_bank_name(name)[0] for name in stack.atoms]
    found = {}
    for name in projections:
        letters = [
            key for key in banks if name in PROJECTIONS and {*name} <= {*key} <= {*PROJECTIONS}
        ]
        if matches := [key for key in banks if key == name] or letters:
            found[name] = matches[0]
    return found


def shared_atoms(
    source: Source, projections: Iterable[str]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read the atoms, and the dictionary of each projection that shares.

    Returns:
        Dictionary -> atoms (S, out, in), float32, on the CPU; projection -> dictionary.

    Raises:
        ValueError: If a projection has no atoms.
    """
    stack = _stack_of(source)
    banks = {parse_bank_name(name): atoms for name, atoms in stack.atoms.items()}
    dictionary_of = _dictionary_names(source, stack, projections)
    if missing := [name for name in projections if name not in dictionary_of]:
        raise ValueError(
            f'projections {missing} have coefficients but no atoms: expected a dictionary of their '
            f'name, or with their letters, found {sorted({key for key, _ in banks})} '
            '(`*_banks.<dictionary>.atoms`). If it has another name, give the model, not a state dict'
        )
    atoms = {
        # the atoms of groups are in the order in which `coefficients` places them
        key: torch.cat([banks[each].float().cpu() for each in sorted(banks) if each[0] == key])
        for key in dict.fromkeys(dictionary_of.values())
    }
    return atoms, dictionary_of


@dataclass(frozen=True)
class ProjectionWeights:
    """The projections of all L layers of one model, on the CPU; float32, but for `dense`."""

    coef: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Projection that shares -> C (L, S), as `coefficients` returns it."""
    atoms: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Projection that shares -> D (S, out, in); where layers are in groups, the atoms of all."""
    residuals: Mapping[str, Mapping[int, Residual]] = field(default_factory=dict)
    """Projection -> layer -> its low-rank residual."""
    dense: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)
    """Projection that does not share -> L weights (out, in), in the dtype of the model; of low-rank
    factors alone their product."""
    dictionaries: Mapping[str, str] = field(default_factory=dict)
    """Projection that shares -> the name of its dictionary; several may have the same."""
    num_coefficients: int = 0
    """Numbers stored for C, or for the MLP that makes it; of groups without the zeros of `coef`."""
    num_heads: int | None = None
    """Of the attention; None if it is not known (a state dict does not contain it)."""

    @property
    def projections(self) -> list[str]:
        """All projections: q, k, v, o, then others."""
        names = [*self.coef, *self.dense]
        first = [name for name in PROJECTIONS if name in names]
        return first + [name for name in names if name not in first]

    @property
    def depth(self) -> int:
        """L."""
        return len(next(iter({**self.coef, **self.dense}.values())))

    @property
    def num_parameters(self) -> int:
        """Numbers that are stored: atoms, coefficients, residuals and dense weights."""
        dense = [weights for name, weights in self.dense.items() if name not in self.residuals]
        tensors = [weight for weights in dense for weight in weights]
        tensors += [self.atoms[names[0]] for names in self.users.values()]
        for of_name in self.residuals.values():
            tensors += [part for residual in of_name.values() for part in residual]
        return self.num_coefficients + sum(tensor.numel() for tensor in tensors)

    @property
    def users(self) -> dict[str, list[str]]:
        """Name of a dictionary -> the projections that draw on it."""
        users: dict[str, list[str]] = {}
        for name, key in self.dictionaries.items():
            users.setdefault(key, []).append(name)
        return users

    @property
    def shares(self) -> bool:
        """Whether any projection is composed from atoms."""
        return bool(self.coef)

    def compose(self, name: str) -> torch.Tensor:
        """Return the weights of a projection in all layers, (L, out, in), with their residuals."""
        if name in self.dense:
            return torch.stack([weight.float() for weight in self.dense[name]])
        weights = compose(self.coef[name], self.atoms[name])
        for layer, (up, down) in self.residuals.get(name, {}).items():
            weights[layer] += up @ down
        return weights


def projection_weights(source: Source) -> ProjectionWeights:
    """Read the projections of a model, of any module that holds one, or of a state dict.

    Args:
        source: MASA or dense; a dense one has to have timm's names (`attn.qkv`, `attn.proj`).

    Raises:
        ValueError: If there are no such projections, or several stacks of blocks that have some.
    """
    stack = _stack_of(source)
    coef = coefficients(source)
    num_heads = None
    if isinstance(source, nn.Module):
        heads = [module.num_heads for module in source.modules() if hasattr(module, 'num_heads')]
        num_heads = heads[0] if heads and isinstance(heads[0], int) else None
    if not coef and len(stack.dense_stacks) > 1:
        raise ValueError(
            f'several stacks of blocks have attention projections: {stack.dense_stacks}. Models with '
            'stages (Swin) cannot be read; of a module that holds several models, give one of them'
        )
    dense = {name: [rows[i].cpu() for i in sorted(rows)] for name, rows in stack.dense.items()}
    for name, factors in stack.residuals.items():
        if name not in coef:
            dense[name] = [(factors[i][0] @ factors[i][1]).cpu() for i in sorted(factors)]
    if not coef and not dense:
        raise ValueError(
            'there are no attention projections in it: expected a MASA model (`*_banks.*.atoms`), or '
            f"timm's names of a dense one ({', '.join(LAYOUT)})"
        )
    atoms_of, dictionary_of = shared_atoms(source, coef)
    return ProjectionWeights(
        coef=coef,
        atoms={name: atoms_of[key] for name, key in dictionary_of.items()},
        residuals={
            name: {i: (up.cpu().float(), down.cpu().float()) for i, (up, down) in of_name.items()}
            for name, of_name in stack.residuals.items()
        },
        dense=dense,
        dictionaries=dictionary_of,
        num_coefficients=stack.num_coefficients,
        num_heads=num_heads,
    )
