"""What a model's projections are made of: atoms, coefficients, residuals, or dense weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from masa_vit.analysis.extract import coefficients, count_coefficients, dictionary_names
from masa_vit.layers import parse_bank_name
from masa_vit.models.sharing_args import LAYOUT, PROJECTIONS

_BANK = re.compile(r'(?:.*\.)?banks\.(?P<bank>\w+)\.atoms')
_OWN = re.compile(
    r'(?P<stack>(?:.*\.)?)(?P<layer>\d+)\.[\w.]+\.(?P<part>dense|up|down)_(?P<name>\w+)'
)
_LINEAR = re.compile(
    rf'(?P<stack>(?:.*\.)?)(?P<layer>\d+)\.(?P<path>{"|".join(map(re.escape, LAYOUT))})\.weight'
)

Residual = tuple[torch.Tensor, torch.Tensor]
"""U (out, k) and V (k, in)."""


@dataclass(frozen=True)
class ProjectionWeights:
    """The projections of all L layers of one model, on the CPU; float32, but for `dense`."""

    coef: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Projection that shares -> C (L, S), as `coefficients` returns it."""
    atoms: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Projection that shares -> D (S, out, in); where layers are in groups, the atoms of all."""
    residuals: Mapping[str, Mapping[int, Residual]] = field(default_factory=dict)
    """Projection -> layer -> the part of its weight that is its own."""
    dense: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)
    """Projection that does not share -> L weights (out, in), in the dtype of the model."""
    dictionaries: Mapping[str, str] = field(default_factory=dict)
    """Projection that shares -> the name of its dictionary; several may have the same."""
    num_coefficients: int = 0
    """Numbers stored for C, or for the MLP that makes it; of groups without the zeros of `coef`."""
    num_heads: int | None = None
    """Of the attention; None if it is not known (a state dict does not say)."""

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
        tensors = [weight for weights in self.dense.values() for weight in weights]
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
        coef, atoms = self.coef[name], self.atoms[name]
        weights = (coef @ atoms.flatten(1)).view(-1, *atoms.shape[1:])
        for layer, (up, down) in self.residuals.get(name, {}).items():
            weights[layer] += up @ down
        return weights


def projection_weights(source: nn.Module | Mapping[str, torch.Tensor]) -> ProjectionWeights:
    """Read the projections of a model, of any module that holds one, or of a state dict.

    Args:
        source: MASA or dense; a dense one has to have timm's names (`attn.qkv`, `attn.proj`).

    Raises:
        ValueError: If there are no such projections, or several stacks of blocks that have some.
    """
    coef = coefficients(source)
    state, num_heads = _state_of(source), None
    if isinstance(source, nn.Module):
        heads = [module.num_heads for module in source.modules() if hasattr(module, 'num_heads')]
        num_heads = heads[0] if heads and isinstance(heads[0], int) else None
    own, stacks = _own_parts(state)
    if not coef and not own['dense']:
        raise ValueError(
            'there are no attention projections in it: expected a MASA model (`banks.*.atoms`), or '
            f"timm's names of a dense one ({', '.join(LAYOUT)})"
        )
    if len(stacks) > 1:
        raise ValueError(
            f'several stacks of blocks have attention projections: {sorted(stacks)}. Models with '
            'stages (Swin) cannot be read; of a module that holds several models, give one of them'
        )
    atoms_of, dictionary_of = shared_atoms(source, coef)
    return ProjectionWeights(
        coef=coef,
        atoms={name: atoms_of[key] for name, key in dictionary_of.items()},
        residuals=_residuals(own),
        dense={name: [rows[i] for i in sorted(rows)] for name, rows in own['dense'].items()},
        dictionaries=dictionary_of,
        num_coefficients=count_coefficients(source),
        num_heads=num_heads,
    )


def shared_atoms(
    source: nn.Module | Mapping[str, torch.Tensor], projections: Iterable[str]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read the atoms alone, and who uses them.

    Args:
        source: As of `projection_weights`.
        projections: Those that share, as `coefficients` has them.

    Returns:
        Dictionary -> atoms (S, out, in), float32, on the CPU; projection -> dictionary.

    Raises:
        ValueError: If a projection has no atoms.
    """
    banks = {
        (key, layers): value
        for name, value in _state_of(source).items()
        if (match := _BANK.fullmatch(name))
        for key, layers in [parse_bank_name(match['bank'])]
    }
    dictionary_of = dictionary_names(source, projections)
    if missing := [name for name in projections if name not in dictionary_of]:
        raise ValueError(
            f'projections {missing} have coefficients but no atoms: expected a dictionary of their '
            f'name, or with their letters, found {sorted({key for key, _ in banks})} '
            '(`banks.<dictionary>.atoms`). If it has another name, give the model, not a state dict'
        )
    atoms = {
        # the atoms of groups stand in the order in which `coefficients` places them
        key: torch.cat([banks[each].float().cpu() for each in sorted(banks) if each[0] == key])
        for key in dict.fromkeys(dictionary_of.values())
    }
    return atoms, dictionary_of


def _state_of(source: nn.Module | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if isinstance(source, nn.Module):
        return {key: value.detach() for key, value in source.state_dict(keep_vars=True).items()}
    return dict(source)


_Parts = dict[str, dict[str, dict[int, torch.Tensor]]]


def _own_parts(state: Mapping[str, torch.Tensor]) -> tuple[_Parts, set[str]]:
    """What layers have of their own: part -> projection -> layer -> tensor; and their stacks."""
    parts: _Parts = {'dense': {}, 'up': {}, 'down': {}}
    stacks = set()
    for key, value in state.items():
        if match := _OWN.fullmatch(key):
            found = {(match['part'], match['name']): value}
        elif match := _LINEAR.fullmatch(key):
            names = LAYOUT[match['path']]
            rows = value.chunk(len(names))
            found = {('dense', name): row for name, row in zip(names, rows, strict=True)}
        else:
            continue
        stacks.add(match['stack'])
        for (part, name), tensor in found.items():
            parts[part].setdefault(name, {})[int(match['layer'])] = tensor.cpu()
    return parts, stacks


def _residuals(own: _Parts) -> dict[str, dict[int, Residual]]:
    return {
        name: {
            layer: (up.float(), own['down'][name][layer].float()) for layer, up in layers.items()
        }
        for name, layers in own['up'].items()
    }
