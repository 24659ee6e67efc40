"""Load the weights of a MASA model straight into the plain timm model: small file, dense speed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from masa_vit.analysis.extract import coefficient_rows
from masa_vit.layers import SharedLinear, parse_bank_name
from masa_vit.models import read_state_dict
from masa_vit.models.sharing_args import LAYOUT

ModelT = TypeVar('ModelT', bound=nn.Module)

_BANK = re.compile(r'banks\.(\w+)\.atoms')

_CHUNK = 1 << 17
"""Numbers of each weight that are composed at a time, so that they stay in the cache."""


@torch.no_grad()
def load_folded(model: ModelT, source: str | Path) -> ModelT:
    """Load a MASA model's weights into the dense model that it folds to, in place.

    The file of a MASA model is the small form for deployment (0.78 of the dense file for ViT-B with
    S=4). The loaded model has dense speed, as that from `masa_vit.fold`: the weights of every layer
    are composed once, while loading.

    Args:
        model: The plain timm model, e.g. ``timm.create_model('vit_base_patch16_224')`` for the file
            of a ``vit_base_masa_s4``. Values are converted to its dtype and moved to its device.
        source: A `.safetensors` or `.pth` file with coefficients of any kind.

    Returns:
        The same model.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If `model` is not a plain vision transformer of timm.
        ValueError: If the file is not that of a MASA model, or does not fit; `model` is unchanged.
    """
    vit = _check_model(model)
    state = read_state_dict(source)
    banks = _banks(state, len(vit.blocks))
    if not banks:
        raise ValueError(
            f'{str(source)!r} is not the file of a MASA model: it has no banks.*.atoms, but '
            f'{", ".join(list(state)[:4])}, ... A dense file is loaded by masa_vit.load_weights'
        )
    own = vit.state_dict()
    _check_fit(vit, own, state, banks, str(source))
    for key, value in state.items():
        if key in own:
            own[key].copy_(value)
    coef = coefficient_rows(state)
    for path, names in LAYOUT.items():
        for index, name in enumerate(names):
            rows = [
                own[f'blocks.{layer}.{path}.weight'].chunk(len(names))[index]
                for layer in range(len(vit.blocks))
            ]
            for atoms, layers in banks.get(name, []):
                mix = torch.stack([coef[name][layer] for layer in layers])
                _compose_into([rows[layer] for layer in layers], atoms, mix)
            for layer, row in enumerate(rows):
                linear = f'blocks.{layer}.{path}'
                if f'{linear}.dense_{name}' in state:  # else shared, or the whole linear is dense
                    row.copy_(state[f'{linear}.dense_{name}'])
                if f'{linear}.up_{name}' in state:
                    up, down = (state[f'{linear}.{part}_{name}'].float() for part in ('up', 'down'))
                    row.copy_(row.float() + (up @ down).to(row.device))
    return model


def _banks(
    state: Mapping[str, torch.Tensor], depth: int
) -> dict[str, list[tuple[torch.Tensor, tuple[int, ...]]]]:
    """Projection -> the atoms (S, out, in) that there are for it, each with its layers."""
    banks: dict[str, list[tuple[torch.Tensor, tuple[int, ...]]]] = {}
    for key, atoms in state.items():
        if match := _BANK.fullmatch(key):
            names, layers = parse_bank_name(match[1])
            for name in names:
                banks.setdefault(name, []).append((atoms, layers or tuple(range(depth))))
    return banks


def _compose_into(rows: Sequence[torch.Tensor], atoms: torch.Tensor, coef: torch.Tensor) -> None:
    """Write ``W_l = sum_s c_ls D_s`` into the L weights `rows`, (out, in) each, with C (L, S).

    Mixes in float32 at least, whatever the file's dtype is.
    """
    dtype = torch.promote_types(atoms.dtype, torch.float32)
    flat = atoms.to(rows[0].device).view(len(atoms), -1)
    coef = coef.to(flat.device, dtype)
    outputs = [row.view(1, -1) for row in rows]
    for start in range(0, flat.shape[1], _CHUNK):
        where = slice(start, start + _CHUNK)
        columns = flat[:, where].to(dtype)
        for output, mix in zip(outputs, coef.split(1), strict=True):
            if output.dtype == dtype:
                torch.mm(mix, columns, out=output[:, where])
            else:
                output[:, where] = torch.mm(mix, columns)


def _check_model(model: nn.Module) -> Any:
    if any(isinstance(module, SharedLinear) for module in model.modules()):
        raise TypeError(
            f'load_folded fills a dense model, and this {type(model).__name__} shares its weights: '
            'load the file by model.load_state_dict or masa_vit.load_weights'
        )
    if not isinstance(model, VisionTransformer):
        raise TypeError(
            f'load_folded fills a VisionTransformer of timm, got {type(model).__name__}; for a '
            'wrapper, give the model inside'
        )
    if any(param.is_meta for param in model.parameters()):
        raise ValueError(
            "the model is on the meta device: give it memory first, model.to_empty(device='cpu')"
        )
    return model


def _check_fit(
    model: Any,
    own: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    banks: Mapping[str, Sequence[tuple[torch.Tensor, tuple[int, ...]]]],
    source: str,
) -> None:
    """Raise ValueError unless the file holds the model's tensors, and atoms for those composed."""
    found = {key: tuple(value.shape) for key, value in state.items()}
    expected = _expected_shapes(own, len(model.blocks), found, banks)
    problems = {
        'missing in the file': [key for key in expected if key not in found],
        'not in the model': [key for key in found if key not in expected],
        'of another shape': [
            f'{key} {found[key]} instead of {shape}'
            for key, shape in expected.items()
            if found.get(key, shape) != shape
        ],
    }
    lines = [
        f'  {what} ({len(keys)}): {", ".join(keys[:4])}' + (', ...' if len(keys) > 4 else '')
        for what, keys in problems.items()
        if keys
    ]
    if lines:
        raise ValueError(
            '\n'.join(
                [
                    f'{source!r} does not fit this {type(model).__name__}; create it with the arguments '
                    'of the MASA model, without those of the sharing:',
                    *lines,
                ]
            )
        )


def _expected_shapes(
    own: Mapping[str, torch.Tensor],
    depth: int,
    found: Mapping[str, tuple[int, ...]],
    banks: Mapping[str, Sequence[tuple[torch.Tensor, tuple[int, ...]]]],
) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a file that folds to the state dict `own`, sharing as this one does."""
    expected = {key: tuple(value.shape) for key, value in own.items()}
    part_of = {}  # projection -> (out, in)
    for path, names in LAYOUT.items():
        out_features, in_features = expected[f'blocks.0.{path}.weight']
        rows = out_features // len(names)
        part_of.update(dict.fromkeys(names, (rows, in_features)))
        for layer in range(depth) if set(names) & set(banks) else ():
            linear = f'blocks.{layer}.{path}'
            del expected[f'{linear}.weight']
            for name in set(names) - set(banks):
                expected[f'{linear}.dense_{name}'] = part_of[name]
            for name in names:
                if rank := found.get(f'{linear}.up_{name}', (0, 0))[-1]:
                    expected[f'{linear}.up_{name}'] = (rows, rank)
                    expected[f'{linear}.down_{name}'] = (rank, in_features)
    for key in filter(_BANK.fullmatch, found):
        for name in parse_bank_name(key.split('.')[1])[0]:
            if name in part_of:
                expected[key] = (found[key][0], *part_of[name])
    from_mlp = any(key.startswith('generator.') for key in found)
    for layer in range(depth) if from_mlp else ():
        key = f'blocks.{layer}.coef.embedding'
        expected[key] = found.get(key, ())
    for name, of_name in banks.items() if not from_mlp else ():
        for atoms, layers in of_name:
            for layer in layers:
                expected[f'blocks.{layer}.coef.{name}'] = (len(atoms),)
    if from_mlp:
        for fc in ('fc1', 'fc2', 'fc3'):
            for key in (f'generator.{fc}.weight', f'generator.{fc}.bias'):
                expected[key] = found.get(key, ())
    return expected
