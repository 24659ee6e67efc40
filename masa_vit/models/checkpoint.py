"""Make state dicts fit MASA models, by whichever way they are loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from timm.models import clean_state_dict
from timm.models.vision_transformer import checkpoint_filter_fn as vit_checkpoint_filter_fn
from torch import nn

from masa_vit.layers import (
    AtomBank,
    CoefficientGenerator,
    CoefficientSource,
    FrozenCoefficients,
    SharedLinear,
    parse_bank_name,
)
from masa_vit.models.sharing_args import PROJECTIONS, shortest

_logger = logging.getLogger(__name__)

DENSE_INTO_MASA = (
    'The model shares its attention weights, and a dense model cannot be loaded into it: turning one '
    'into the other is lossy and never done in silence. Compress it, which approximates its weights '
    'by atoms, or train the MASA model from scratch; for a dense model use its timm name without '
    '"masa".'
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Unwrap a checkpoint and resample its position and patch embeddings to the model's sizes."""
    state_dict = state_dict.get('model', state_dict)
    state_dict = state_dict.get('state_dict', state_dict)
    return vit_checkpoint_filter_fn(clean_state_dict(state_dict), model)


def adapt_state_dict(model: nn.Module, state_dict: MutableMapping[str, Any], prefix: str) -> None:
    """Make a state dict fit a MASA model, in place, or say why it cannot.

    Coefficients of the 'mlp' kind are computed and become direct ones where the model holds direct
    (or frozen) coefficients.

    A model may have residuals that the checkpoint has not: they start at zero.

    Raises:
        ValueError: For a dense checkpoint, other dictionaries, another number of atoms, residuals of
            another rank, or direct coefficients for a model with an MLP.
    """
    if not _check_banks(model, state_dict, prefix):
        for name, module in model.named_modules():
            if isinstance(module, SharedLinear) and f'{prefix}{name}.weight' in state_dict:
                raise ValueError(
                    f"the checkpoint is dense ('{prefix}{name}.weight'). {DENSE_INTO_MASA}"
                )
    _check_residuals(model, state_dict, prefix)
    _adapt_coefficients(model, state_dict, prefix)
    _check_frozen(model, state_dict, prefix)


def sharing_of(state_dict: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Read off a MASA checkpoint with which arguments its model says what is shared."""
    numbers: dict[str, dict[tuple[int, ...], int]] = {}  # key of the dictionary -> group -> S
    for name, atoms in _atoms(state_dict, prefix).items():
        key, layers = parse_bank_name(name)
        numbers.setdefault(key, {})[layers or ()] = len(atoms)
    keys = sorted(numbers, key=lambda key: PROJECTIONS.find(key[0]))
    projections = ''.join(sorted(''.join(keys), key=PROJECTIONS.find))
    groups = sorted({layers for of_key in numbers.values() for layers in of_key if layers})
    args: dict[str, Any] = {
        'num_atoms': shortest({key: [s for _, s in sorted(numbers[key].items())] for key in keys}),
        'projections': projections,
    }
    if keys != list(projections):
        args['dictionaries'] = keys
    if groups:
        args['groups'] = [list(layers) for layers in groups]
    ranks: dict[str, dict[int, int]] = {name: {} for name in projections}
    depth = 1
    for key, value in state_dict.items():
        if match := re.match(rf'{re.escape(prefix)}blocks\.(\d+)\.(?:.*\.down_(\w+)$)?', key):
            depth = max(depth, int(match[1]) + 1)
            if match[2] in ranks:
                ranks[match[2]][int(match[1])] = len(value)
    if any(ranks.values()):
        args['residual_rank'] = shortest(
            {name: [of.get(layer, 0) for layer in range(depth)] for name, of in ranks.items()}
        )
    return args


def create_with(state_dict: Mapping[str, Any], prefix: str = '') -> str:
    """Tell how to create the model that a MASA checkpoint fits, for an error."""
    args = ', '.join(f'{key}={value!r}' for key, value in sharing_of(state_dict, prefix).items())
    return f'create the model with {args} (model_args in a config, --model-args of a command)'


def _atoms(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Name of the bank -> its atoms."""
    return {
        match[1]: value
        for key, value in state_dict.items()
        if (match := re.fullmatch(rf'{re.escape(prefix)}banks\.(\w+)\.atoms', key))
    }


def _check_banks(model: nn.Module, state_dict: Mapping[str, Any], prefix: str) -> bool:
    """Whether the state dict holds banks; ValueError if they are not the model's."""
    found = _atoms(state_dict, prefix)
    if not found:
        return False
    banks = model.get_submodule('banks')
    own = {name: bank.atoms for name, bank in banks.named_children() if isinstance(bank, AtomBank)}
    if set(found) != set(own):
        raise ValueError(
            f'the checkpoint has the dictionaries {sorted(found)}, the model {sorted(own)}: '
            + create_with(state_dict, prefix)
        )
    for name, atoms in own.items():
        if found[name].shape[0] != atoms.shape[0]:
            raise ValueError(
                f'the checkpoint has S={found[name].shape[0]} atoms in dictionary {name!r}, the model '
                f'{atoms.shape[0]}: {create_with(state_dict, prefix)}'
            )
    return True


def _check_residuals(model: nn.Module, state_dict: Mapping[str, Any], prefix: str) -> None:
    """Refuse residuals that the model has not: without them its weights would be others."""
    for path, module in model.named_modules():
        if not isinstance(module, SharedLinear):
            continue
        for name in module.shared_names:
            down = state_dict.get(f'{prefix}{path}.down_{name}')
            own = module.ranks.get(name, 0)
            if down is not None and len(down) != own:
                raise ValueError(
                    f'the checkpoint has a residual of rank {len(down)} for {name!r} in {path}, the '
                    f'model one of rank {own}: {create_with(state_dict, prefix)}'
                )


def _check_frozen(model: nn.Module, state_dict: Mapping[str, Any], prefix: str) -> None:
    """Refuse to replace coefficients that the user gave by others."""
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


def _adapt_coefficients(
    model: nn.Module, state_dict: MutableMapping[str, Any], prefix: str
) -> None:
    sources = {
        f'{prefix}{name}.': module
        for name, module in model.named_modules()
        if isinstance(module, CoefficientSource)
    }
    from_mlp = f'{prefix}generator.fc1.weight' in state_dict
    if model.generator is not None:
        for key, source in sources.items():
            if any(f'{key}{name}' in state_dict for name in source.num_atoms):
                raise ValueError(
                    'the checkpoint holds direct coefficients, the model computes them by an MLP, '
                    "which cannot be inverted. Create the model with coefficients='direct', or call "
                    'masa_vit.bake(model) before loading.'
                )
        if from_mlp:
            _check_generator(model.generator, state_dict[f'{prefix}generator.fc1.weight'])
        return
    if not from_mlp:
        return
    weights = {
        key.removeprefix(f'{prefix}generator.'): state_dict.pop(key)
        for key in list(state_dict)
        if key.startswith(f'{prefix}generator.')
    }
    hidden_dim, embed_dim = weights['fc1.weight'].shape
    num_atoms = next(iter(sources.values())).num_atoms
    if weights['fc3.weight'].shape[0] != sum(num_atoms.values()):
        raise ValueError(
            f'the coefficient MLP of the checkpoint gives {weights["fc3.weight"].shape[0]} '
            f'coefficients per block, the model needs {num_atoms}'
        )
    generator = CoefficientGenerator(num_atoms, embed_dim, hidden_dim, device='meta')
    generator.load_state_dict(weights, assign=True)
    with torch.no_grad():
        for key in sources:
            embedding = state_dict.pop(f'{key}embedding', None)
            if embedding is not None:
                for name, row in generator.rows(embedding).items():
                    state_dict[f'{key}{name}'] = row
    _logger.info(
        'The coefficients of the checkpoint come from an MLP: computed them and dropped the MLP.'
    )


def _check_generator(generator: Any, fc1_weight: torch.Tensor) -> None:
    if fc1_weight.shape != generator.fc1.weight.shape:
        hidden_dim, embed_dim = fc1_weight.shape
        raise ValueError(
            'the coefficient MLP of the checkpoint has other widths than the model: create the model '
            f'with coef_embed_dim={embed_dim}, coef_hidden_dim={hidden_dim}'
        )
