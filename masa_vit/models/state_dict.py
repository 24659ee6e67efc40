"""Names of tensors in state dicts; no other module parses them.

In a stack of blocks (``blocks.`` of a vision transformer) a file holds

- ``blocks.attn_banks.<bank>.atoms``: D, (S, out, in); see `bank_name` for names of banks;
- ``blocks.<layer>.attn.coef.<projection>``: c, (S,), or (S, out) with a coefficient for each row; or
  ``...coef.embedding`` of the paper's MLP, ``blocks.attn_generator.{weight,bias}{1,2,3}``;
- ``blocks.<layer>.attn.qkv.{up,down}_<projection>``: the low-rank residual, (out, k) and (k, in);
- ``blocks.<layer>.attn.qkv.dense_<projection>``, or ``...qkv.weight`` where nothing in it shares;
- the same for ``mlp``, fc1 and fc2.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from masa_vit.layers import CoefficientGenerator, parse_bank_name
from masa_vit.models.sharing_args import LAYOUT, PROJECTIONS, shortest

_KEY = re.compile(
    r"""(?P<stack>(?:.*\.)?)(?:
        (?:\w+_)?banks\.(?P<bank>\w+)\.atoms
      | (?:\w+_)?generator\.(?P<generator>(?:weight|bias)[123])
      | (?P<layer>\d+)\.(?:
            (?:[\w.]+\.)?coef\.(?P<coef>\w+)
          | [\w.]+\.(?P<part>dense|up|down)_(?P<name>\w+)
          | (?P<linear>"""
    + '|'.join(map(re.escape, LAYOUT))
    + r""")\.weight))""",
    re.VERBOSE,
)

_OLD_BANK = re.compile(r'(?P<model>(?:.*\.)?)banks\.\w+\.atoms')
_RENAMES = (
    (r'banks\.(\w+)\.atoms', r'blocks.attn_banks.\1.atoms'),
    (r'generator\.fc(\d)\.(weight|bias)', r'blocks.attn_generator.\2\1'),
    (r'blocks\.(\d+)\.coef\.(\w+)', r'blocks.\1.attn.coef.\2'),
)
"""Names in version 0.1 -> present names."""

Residual = tuple[torch.Tensor, torch.Tensor]
"""U (out, k) and V (k, in)."""


@dataclass(frozen=True)
class StackState:
    """The shared and dense projections of one stack of blocks, as views of a state dict."""

    stack: str = ''
    """Prefix of the stack, e.g. ``backbone.blocks.``."""
    atoms: dict[str, torch.Tensor] = field(default_factory=dict)
    """Bank -> D (S, out, in)."""
    coef: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    """Layer -> projection -> c (S,); or 'embedding' -> that of the block."""
    generator: dict[str, torch.Tensor] = field(default_factory=dict)
    """Weights of the coefficient MLP."""
    dense: dict[str, dict[int, torch.Tensor]] = field(default_factory=dict)
    """Projection -> layer -> dense weight (out, in)."""
    residuals: dict[str, dict[int, Residual]] = field(default_factory=dict)
    """Projection -> layer -> U and V."""
    is_shared: bool = False
    """Whether layers of the stack are `SharedLinear`, with atoms or other parts."""
    dense_stacks: list[str] = field(default_factory=list)
    """Prefixes of all stacks that have dense projections, this one or others."""

    @property
    def num_coefficients(self) -> int:
        """The numbers stored for C: itself, or embeddings and the MLP."""
        rows = [row for of_layer in self.coef.values() for row in of_layer.values()]
        return sum(value.numel() for value in [*rows, *self.generator.values()])

    @property
    def num_atoms(self) -> dict[str, int]:
        """Projection -> S, where every projection is a letter of 'qkvo' (ValueError otherwise)."""
        numbers: dict[str, int] = {}
        for bank, atoms in self.atoms.items():
            letters = parse_bank_name(bank)[0]
            if not {*letters} <= {*PROJECTIONS}:
                raise ValueError(
                    f'the coefficients of dictionary {letters!r} come from an MLP, and the state dict '
                    'does not name their projections: pass the model instead'
                )
            numbers.update(dict.fromkeys(letters, len(atoms)))
        return {name: numbers[name] for name in sorted(numbers, key=PROJECTIONS.index)}

    @torch.no_grad()
    def coefficient_rows(self) -> dict[str, list[torch.Tensor]]:
        """Return projection -> the coefficients of every layer, L rows (S,); S may differ."""
        rows = [self.coef[layer] for layer in sorted(self.coef)]
        if self.generator:
            hidden_dim, embed_dim = self.generator['weight1'].shape
            mlp = CoefficientGenerator(self.num_atoms, embed_dim, hidden_dim, device='meta')
            mlp.load_state_dict(self.generator, assign=True)
            rows = [mlp(row['embedding']) for row in rows]
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}

    def sharing_args(self) -> dict[str, Any]:
        """Return the arguments of `MasaVisionTransformer` with which the file was written."""
        numbers: dict[str, dict[tuple[int, ...], int]] = {}  # key of the dictionary -> group -> S
        for name, atoms in self.atoms.items():
            key, layers = parse_bank_name(name)
            numbers.setdefault(key, {})[layers or ()] = len(atoms)
        mlp_num_atoms = [s for key in ('fc1', 'fc2') for s in numbers.pop(key, {}).values()]
        for name in self.residuals:
            if name not in ''.join(numbers):
                numbers[name] = {(): 0}
        keys = sorted(numbers, key=lambda key: PROJECTIONS.find(key[0]))
        projections = ''.join(sorted(''.join(keys), key=PROJECTIONS.find))
        args: dict[str, Any] = {'projections': projections}
        if keys:
            of_group = {key: [s for _, s in sorted(numbers[key].items())] for key in keys}
            args = {'num_atoms': shortest(of_group), **args}
        if keys != list(projections):
            args['dictionaries'] = keys
        if groups := sorted({layers for of_key in numbers.values() for layers in of_key if layers}):
            args['groups'] = [list(layers) for layers in groups]
        if self.residuals:
            depth = 1 + max(max(of_layer) for of_layer in self.residuals.values())
            depth = max(depth, *(1 + layer for layer in self.coef), 1)
            ranks = {
                name: {i: len(down) for i, (_, down) in self.residuals.get(name, {}).items()}
                for name in projections
            }
            args['residual_rank'] = shortest(
                {name: [of.get(i, 0) for i in range(depth)] for name, of in ranks.items()}
            )
        if mlp_num_atoms:
            args['mlp_num_atoms'] = mlp_num_atoms[0]
        if self.tie:
            args['tie'] = self.tie
        if self.is_by_channel:
            args['coefficients'] = 'channel'
        return args

    @property
    def tie(self) -> str:
        """The projections with one weight inside a layer, as the argument `tie`."""
        letters = {*''.join(parse_bank_name(bank)[0] for bank in self.atoms)}
        stored = letters | {*self.dense} | {*self.residuals}
        absent = ''.join(name for name in 'qkv' if name not in stored)
        return {'kv': 'qkv', 'k': 'qk', 'v': 'kv'}.get(absent, '')

    @property
    def is_by_channel(self) -> bool:
        """Whether there is a coefficient for each row of a weight."""
        return any(row.ndim == 2 for of_layer in self.coef.values() for row in of_layer.values())

    @property
    def heads_per_key(self) -> int:
        """Heads of Q that use one head of K and V: more than 1 in grouped-query attention."""
        rows = {name: len(row) for name, of in self.dense.items() for row in of.values()}
        rows |= {name: len(up) for name, of in self.residuals.items() for up, _ in of.values()}
        for bank, atoms in self.atoms.items():
            rows |= dict.fromkeys(parse_bank_name(bank)[0], atoms.shape[1])
        return rows['q'] // rows['k'] if {'q', 'k'} <= set(rows) else 1

    def create_with(self) -> str:
        """Return how to create the model of the file, for an error message."""
        args = ', '.join(f'{key}={value!r}' for key, value in self.sharing_args().items())
        if self.heads_per_key > 1:
            args += f', num_kv_heads=<num_heads / {self.heads_per_key}>'
        return f'create the model with {args} (model_args in a config, --model-args of a command)'


def read_stack(state_dict: Mapping[str, torch.Tensor]) -> StackState:
    """Sort the tensors of a state dict by their role; other tensors are ignored.

    If one stack shares, dense ones (a teacher) are ignored. Several dense stacks alone are only
    named, in `dense_stacks`.

    Raises:
        ValueError: If several stacks of blocks share.
    """
    parts: dict[str, dict[str, dict[int, torch.Tensor]]] = {'dense': {}, 'up': {}, 'down': {}}
    read = StackState()
    matches = {key: match for key in state_dict if (match := _KEY.fullmatch(key))}
    dense_stacks = {match['stack'] for match in matches.values() if match['linear']}
    shared_stacks = {match['stack'] for match in matches.values() if not match['linear']}
    if len(shared_stacks) > 1:
        raise ValueError(
            f'several stacks of blocks share weights: {sorted(shared_stacks)}. Only one can be read; of '
            'a module or state dict that holds several models, give one of them'
        )
    stack = next(iter(shared_stacks or (dense_stacks if len(dense_stacks) == 1 else [])), None)
    for key, match in matches.items():
        if match['stack'] != stack:
            continue
        value = state_dict[key]
        layer = int(match['layer'] or 0)
        if match['bank']:
            read.atoms[match['bank']] = value
        elif match['generator']:
            read.generator[match['generator']] = value
        elif match['coef']:
            read.coef.setdefault(layer, {})[match['coef']] = value
        elif match['part']:
            parts[match['part']].setdefault(match['name'], {})[layer] = value
        else:
            names = LAYOUT[match['linear']]
            for name, rows in zip(names, value.chunk(len(names)), strict=True):
                parts['dense'].setdefault(name, {})[layer] = rows
    residuals = {
        name: {layer: (up, parts['down'][name][layer]) for layer, up in of_layer.items()}
        for name, of_layer in parts['up'].items()
    }
    return replace(
        read,
        stack=stack or '',
        is_shared=bool(shared_stacks),
        dense=parts['dense'],
        residuals=residuals,
        dense_stacks=sorted(dense_stacks),
    )


def rename_old_keys(state_dict: MutableMapping[str, Any]) -> bool:
    """Rename the tensors of files of version 0.1, in place; return whether there were any.

    Such a file has the banks beside the blocks, ``banks.q.atoms``.
    """
    models = {match['model'] for key in state_dict if (match := _OLD_BANK.fullmatch(key))}
    models = {m for m in models if any(key.startswith(f'{m}blocks.') for key in state_dict)}
    for model in models:
        for key in [key for key in state_dict if key.startswith(model)]:
            for pattern, new in _RENAMES:
                if re.fullmatch(pattern, name := key.removeprefix(model)):
                    state_dict[model + re.sub(pattern, new, name)] = state_dict.pop(key)
    return bool(models)


def merge_pruned(state_dict: MutableMapping[str, Any], wanted: Collection[str]) -> None:
    """Multiply out ``<name>_orig`` and ``<name>_mask`` of pruned tensors, in place.

    `torch.nn.utils.prune` saves both. They are left where the model is pruned, too.

    Args:
        state_dict: The tensors of a file.
        wanted: Names of the model's tensors.
    """
    for key in [key for key in state_dict if key.endswith('_orig')]:
        name = key.removesuffix('_orig')
        if name in wanted and f'{name}_mask' in state_dict:
            state_dict[name] = state_dict.pop(key) * state_dict.pop(f'{name}_mask')
