"""The model that a command works on: from a folder, by timm's name, or of a training run."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
from torch import nn

from masa_vit.models import create_timm_model, load_exactly, read_state_dict
from masa_vit.models.loading import WEIGHT_FILES
from masa_vit.utils.arguments import parse_pair
from masa_vit.utils.messages import first_lines

LoadClassifier = Callable[[str, str], nn.Module]
"""The timm model of a config and a checkpoint of a training run."""


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a command line that names a model: those of `load_source`."""
    parser.add_argument(
        'source',
        metavar='SOURCE',
        help="a folder with config.json and model.safetensors, a timm model's name, or the config of "
        'a training run',
    )
    parser.add_argument('--checkpoint', help='weights for a name or a config')
    parser.add_argument(
        '--pretrained', action='store_true', help="timm's pretrained weights for a name"
    )
    parser.add_argument(
        '--model-args',
        nargs='+',
        type=parse_pair,
        default=[],
        metavar='KEY=VALUE',
        help='arguments of timm.create_model for a name',
    )


def load_source(
    source: str,
    *,
    checkpoint: str | None = None,
    pretrained: bool = False,
    model_args: Mapping[str, Any] | None = None,
    load_classifier: LoadClassifier | None = None,
) -> nn.Module:
    """Load the model that a command line names.

    Args:
        source: A folder in timm's Hub layout, a timm model name, or the config of a training run.
        checkpoint: Weights for a name or a config; without, the weights of a name are random.
        pretrained: Load timm's pretrained weights of a name.
        model_args: Arguments of `timm.create_model` for a name.
        load_classifier: For configs; None: they are refused.

    Raises:
        FileNotFoundError: If the source or the checkpoint does not exist.
        ValueError: For arguments that do not go together, or a checkpoint that does not fit.
    """
    options = {
        '--checkpoint': checkpoint,
        '--pretrained': pretrained,
        '--model-args': model_args,
    }
    path = Path(source)
    if (path / 'config.json').is_file():
        _refuse(options, source, 'a folder, which has its own', *options)
        return _load_folder(path)
    if source.endswith('.py') or source.startswith('masa_vit::'):
        _refuse(options, source, 'a config', '--pretrained', '--model-args')
        if not checkpoint or load_classifier is None:
            raise ValueError(
                f'the config {source!r} needs its weights: --checkpoint work_dirs/<run>/<file>.pth'
            )
        return load_classifier(source, checkpoint)
    if path.is_file():
        raise ValueError(
            f'{source!r} is a file of weights and does not name its model: give a timm model name or '
            f'the config of the run, and --checkpoint {source}'
        )
    if not timm.is_model(source.partition('.')[0]) and ':' not in source:
        if path.is_dir():
            raise FileNotFoundError(f'the folder {source!r} has no config.json')
        if len(path.parts) > 1:
            raise FileNotFoundError(f'{source!r} does not exist')
    if checkpoint and pretrained:
        raise ValueError('--checkpoint and --pretrained both name weights: choose one')
    return _create(source, dict(model_args or {}), checkpoint, pretrained)


def load_named(args: argparse.Namespace, load_classifier: LoadClassifier | None) -> nn.Module:
    """Load the model that the arguments of `add_source_arguments` name."""
    return load_source(
        args.source,
        checkpoint=args.checkpoint,
        pretrained=args.pretrained,
        model_args=dict(args.model_args),
        load_classifier=load_classifier,
    )


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read the `config.json` of timm's Hub layout.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it does not describe a model of timm.
    """
    path = Path(folder) / 'config.json'
    if not path.is_file():
        raise FileNotFoundError(
            f'{str(folder)!r} has no config.json: expected a folder with config.json and weights'
        )
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{str(path)!r} is not JSON: {error}') from error
    if not isinstance(config, dict) or not isinstance(config.get('architecture'), str):
        raise ValueError(f"{str(path)!r} has no 'architecture': it does not describe a timm model")
    for key in ('model_args', 'pretrained_cfg'):
        if not isinstance(config.get(key, {}), dict):
            raise ValueError(f'{str(path)!r}: {key} is {config[key]!r}, expected a mapping')
    return config


def _check_size(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a config whose sizes do not match the weights, before the model is built."""
    weights = [file for name in WEIGHT_FILES if (file := folder / name).is_file()]
    if not weights:
        raise FileNotFoundError(
            f'the folder {str(folder)!r} has no weights; expected one of {", ".join(WEIGHT_FILES)}'
        )
    for file in weights:
        state = read_state_dict(file)
        found = {key.split('.')[1] for key in state if re.match(r'blocks\.\d+\.', key)}
        depth = config.get('model_args', {}).get('depth', len(found))
        if found and depth != len(found):
            raise ValueError(
                f'{str(folder)!r}: config.json has depth={depth!r}, {file.name} {len(found)} blocks'
            )
        numbers = sum(tensor.numel() for tensor in state.values())
        for key, value in config.get('model_args', {}).items():
            if isinstance(value, int) and value > max(numbers, 10_000):
                raise ValueError(
                    f'{str(folder)!r}: config.json has {key}={value}, more than the {numbers:,} numbers '
                    f'in {file.name}'
                )


def _refuse(options: Mapping[str, Any], source: str, what: str, *names: str) -> None:
    for name in names:
        if options[name]:
            raise ValueError(f'{source!r} is {what}: {name} is for the names of timm models')


def _load_folder(folder: Path) -> nn.Module:
    config = read_config(folder)
    name = config['architecture']
    if not timm.is_model(name):
        raise ValueError(f'{str(folder)!r} holds a {name!r}, which timm does not know')
    _check_size(config, folder)
    try:
        model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    except Exception as error:  # timm passes config.json to the model unchecked
        raise ValueError(f'timm cannot load {str(folder)!r}: {first_lines(error)}') from error
    return _record(model, config.get('model_args', {}))


def _create(
    name: str, model_args: dict[str, Any], checkpoint: str | None, pretrained: bool
) -> nn.Module:
    try:
        model = create_timm_model(name, model_args, pretrained=pretrained)
    except RuntimeError as error:
        raise ValueError(f'no weights for {name!r}: {first_lines(error)}') from error
    if checkpoint:
        load_exactly(model, checkpoint)
    return _record(model, model_args)


def _record(model: Any, model_args: dict[str, Any]) -> nn.Module:
    """Store the arguments of the model where newer versions of timm store them."""
    if not hasattr(model, '_model_args'):
        model._model_args = model_args
    return model
