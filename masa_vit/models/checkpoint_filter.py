"""Adapt state dicts to MASA models, on every way of loading."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

import torch
from timm.models import clean_state_dict
from timm.models.vision_transformer import checkpoint_filter_fn as vit_checkpoint_filter_fn
from torch import nn

from masa_vit.layers import AtomBank, ChannelCoefficients, FrozenCoefficients, SharedLinear
from masa_vit.models.state_dict import StackState, merge_pruned, read_stack, rename_old_keys

_logger = logging.getLogger(__name__)

DENSE_INTO_MASA = (
    'A MASA model cannot load dense attention weights: the conversion is lossy. Compress the dense '
    'model (masa_vit.compress), which approximates its weights by atoms, or train the MASA model from '
    'scratch; for a dense model use its timm name without "masa".'
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Unwrap a checkpoint and resample its position and patch embeddings to the model's sizes."""
    state_dict = state_dict.get('model', state_dict)
    state_dict = state_dict.get('state_dict', state_dict)
    return vit_checkpoint_filter_fn(clean_state_dict(state_dict), model)


def adapt_state_dict(model: nn.Module, state_dict: MutableMapping[str, Any], prefix: str) -> None:
    """Adapt a state dict to a MASA model, in place.

    Names of version 0.1 are replaced. Coefficients of the 'mlp' kind are computed and
    become direct ones where the model holds direct (or frozen) coefficients. With ``strict=False`` the
    checkpoint may lack the model's residuals, which keep their values (zero at the start).

    Raises:
        ValueError: For a dense checkpoint, other dictionaries, another number of atoms, residuals of
            another rank, or direct coefficients for a model with an MLP.
    """
    rename_old_keys(state_dict)
    if any(key.endswith('_orig') for key in state_dict):
        merge_pruned(state_dict, {f'{prefix}{name}' for name in model.state_dict()})
    own = f'{prefix}blocks.'
    found = read_stack({key: value for key, value in state_dict.items() if key.startswith(own)})
    shared = {n: m for n, m in model.named_modules() if isinstance(m, SharedLinear)}
    if not found.is_shared:
        for name in shared:
            if f'{prefix}{name}.weight' in state_dict:
                raise ValueError(
                    f"the checkpoint is dense ('{prefix}{name}.weight'). {DENSE_INTO_MASA}"
                )
        return
    _check_banks(model, found)
    _check_kind(model, shared, found)
    for path, layer in shared.items():
        _check_residuals(path, layer, found)
    _adapt_coefficients(model, state_dict, found)
    _check_frozen(model, state_dict, prefix)


def _check_banks(model: Any, found: StackState) -> None:
    """Raise ValueError unless the checkpoint has the model's banks."""
    own = {
        name: bank
        for shared in getattr(model.blocks, 'shared', {}).values()
        if isinstance(shared, nn.ModuleDict)
        for name, bank in shared.items()
        if isinstance(bank, AtomBank) and 'atoms' in bank._parameters  # else wrapped or pruned
    }
    if set(found.atoms) != set(own):
        raise ValueError(
            f'the checkpoint has the dictionaries {sorted(found.atoms)}, the model {sorted(own)}: '
            + found.create_with()
        )
    for name, bank in own.items():
        if len(found.atoms[name]) != bank.num_atoms:
            raise ValueError(
                f'the checkpoint has S={len(found.atoms[name])} atoms in dictionary {name!r}, the '
                f'model {bank.num_atoms}: {found.create_with()}'
            )


def _check_kind(model: Any, shared: dict[str, SharedLinear], found: StackState) -> None:
    """Raise ValueError if the checkpoint has other ties, heads or coefficients for each row."""
    names = next((''.join(x.names) for path, x in shared.items() if path.endswith('.qkv')), 'qkv')
    own_tie = {'qqq': 'qkv', 'qqv': 'qk', 'qkk': 'kv'}.get(names, '')
    own = {
        'tie': own_tie,
        'heads per key/value head': max(
            [1, *(repeat.times for layer in shared.values() for repeat in layer.repeats.values())]
        ),
        'coefficients for each row': any(
            isinstance(m, ChannelCoefficients) for m in model.modules()
        ),
    }
    of_file = dict(zip(own, (found.tie, found.heads_per_key, found.is_by_channel), strict=True))
    for name, value in own.items():
        if of_file[name] != value:
            raise ValueError(
                f'the checkpoint has {name}={of_file[name]!r}, the model {value!r}: '
                + found.create_with()
            )


def _check_residuals(path: str, layer: SharedLinear, found: StackState) -> None:
    """Refuse residuals that the model lacks: dropping them would change its weights."""
    index = int(path.split('.')[1])
    for name in dict.fromkeys(layer.names):
        if index in found.residuals.get(name, {}):
            rank, own = len(found.residuals[name][index][1]), layer.ranks.get(name, 0)
            if rank != own:
                raise ValueError(
                    f'the checkpoint has a residual of rank {rank} for {name!r} in {path}, the model '
                    f'one of rank {own}: {found.create_with()}'
                )


def _adapt_coefficients(
    model: Any, state_dict: MutableMapping[str, Any], found: StackState
) -> None:
    """Compute the coefficients of a checkpoint with an MLP, for a model without one."""
    if model.generator is not None:
        if not found.generator:
            raise ValueError(
                'the checkpoint holds direct coefficients, the model computes them by an MLP, '
                "which cannot be inverted. Create the model with coefficients='direct', or call "
                'masa_vit.bake(model) before loading.'
            )
        if found.generator['weight1'].shape != model.generator.weight1.shape:
            hidden_dim, embed_dim = found.generator['weight1'].shape
            raise ValueError(
                'the coefficient MLP of the checkpoint has other widths than the model: create the '
                f'model with coef_embed_dim={embed_dim}, coef_hidden_dim={hidden_dim}'
            )
        return
    if not found.generator:
        return
    needed, given = sum(found.num_atoms.values()), len(found.generator['weight3'])
    if given != needed:
        raise ValueError(
            f'the coefficient MLP of the checkpoint gives {given} coefficients per block, its atoms '
            f'need {needed}'
        )
    rows = found.coefficient_rows()
    for name in found.generator:
        del state_dict[f'{found.stack}attn_generator.{name}']
    for index, layer in enumerate(sorted(found.coef)):
        coef = f'{found.stack}{layer}.attn.coef'
        del state_dict[f'{coef}.embedding']
        state_dict.update({f'{coef}.{name}': of_name[index] for name, of_name in rows.items()})
    _logger.info(
        'The coefficients of the checkpoint come from an MLP: computed them and dropped the MLP.'
    )


def _check_frozen(model: nn.Module, state_dict: MutableMapping[str, Any], prefix: str) -> None:
    """Refuse to replace frozen coefficients by other values."""
    for path, module in model.named_modules():
        if not isinstance(module, FrozenCoefficients):
            continue
        for name, own in module.named_buffers():
            new = state_dict.get(f'{prefix}{path}.{name}')
            if new is None or new.is_meta or own.is_meta or new.shape != own.shape:
                continue
            if not torch.allclose(new.to(own), own, atol=1e-5):
                raise ValueError(
                    f'{prefix}{path}.{name}: the checkpoint has the coefficients {new.tolist()}, the '
                    f"model was created with the frozen ones {own.tolist()}. Use coefficients='direct' "
                    "to take those of the checkpoint, or give them as coef=... for 'frozen'."
                )
