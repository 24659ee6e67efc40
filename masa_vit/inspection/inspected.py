"""Load the sources of `masa-vit inspect`: names of models, folders, checkpoints, runs."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from masa_vit.inspection import ProjectionWeights, projection_weights
from masa_vit.models import read_state_dict
from masa_vit.models.sources import load_source

LAST_CHECKPOINT = 'last_checkpoint'
"""The file that marks a work dir: it names a checkpoint."""

Prepare = Callable[[Path], torch.Tensor]
"""Image file -> (C, H, W), as the model takes it."""


class Run(NamedTuple):
    """A model of a training run, and the preparation of its images."""

    model: nn.Module
    prepare: Prepare


LoadRun = Callable[[str, str], Run]
"""Config and checkpoint -> the model."""


class Source(NamedTuple):
    """A model, or the weights of a checkpoint."""

    name: str
    weights: ProjectionWeights
    model: nn.Module | None = None
    """The model to run; None if the checkpoint does not define one."""
    prepare: Prepare | None = None
    """None: as timm does for the model."""
    why: str = ''
    """Why there is no model to run."""


def load(text: str, config: str | None = None, load_run: LoadRun | None = None) -> Source:
    """Load a source.

    Args:
        text: A timm model's name (new weights), a folder in timm's Hub layout, a checkpoint, or a work
            dir (its last checkpoint).
        config: Of the run that wrote the checkpoint. Default: the one in the same folder.
        load_run: For configs; None: they are not read.

    Raises:
        FileNotFoundError: If the source does not exist.
        ValueError: If it cannot be read, has no attention projections, or does not fit the config.
    """
    if text.endswith('.py'):
        raise ValueError(
            f'{text!r} is a config, not a model: give a checkpoint of it, or a work dir'
        )
    path = Path(text)
    if (path / LAST_CHECKPOINT).is_file():
        path = _last_checkpoint(path)
    if not path.is_file():
        if path.suffix in ('.pth', '.safetensors', '.pt', '.bin'):
            raise FileNotFoundError(f'checkpoint {text!r} does not exist')
        if path.is_dir() and not (path / 'config.json').is_file():
            raise FileNotFoundError(
                f'the folder {text!r} has neither last_checkpoint (a work dir) nor config.json (a model)'
            )
        if config is not None:
            raise ValueError(f'--config is for checkpoints, and {text!r} is none')
        model = load_source(text)
        return Source(_short(text), _weights(model, text), model)
    return _load_checkpoint(path, config, load_run)


def _load_checkpoint(path: Path, config: str | None, load_run: LoadRun | None) -> Source:
    name = '/'.join(path.parts[-2:])
    found = config or _config_beside(path)
    why = f'{str(path)!r} does not say what model it is of: --config CONFIG, the one it was trained by'
    if found and load_run is not None:
        try:
            run = load_run(found, str(path))
            return Source(name, _weights(run.model, name), run.model, run.prepare)
        except (ValueError, ImportError, FileNotFoundError) as error:
            if config is not None:
                raise
            why = f'the config in its folder, {found!r}, does not give a model: {error}'
    return Source(name, _weights(read_state_dict(path), name), why=why)


def _weights(source: nn.Module | Mapping[str, torch.Tensor], name: str) -> ProjectionWeights:
    try:
        return projection_weights(source)
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from error


def _config_beside(checkpoint: Path) -> str | None:
    """The config that mmengine's runner left in the work dir, if there is just one.

    Configs are Python: only what is nothing but names and literals is taken unasked.
    """
    folder = checkpoint.parent
    configs = [*folder.glob('*.py')] if (folder / LAST_CHECKPOINT).is_file() else []
    return str(configs[0]) if len(configs) == 1 and _is_plain(configs[0]) else None


_PLAIN = (
    ast.Assign, ast.Name, ast.Store, ast.Load, ast.keyword, ast.Constant, ast.Dict, ast.List,
    ast.Tuple, ast.Set, ast.UnaryOp, ast.USub,
)  # fmt: skip

_IMPORTS = (
    'masa_vit.training',
    'masa_vit.detection',
    'masa_vit.cls',
    'masa_vit.det',
    'masa_vit.engine',
)
# the last three: older names
_SCOPES = ('mmengine', 'mmdet')


def _is_plain(config: Path) -> bool:
    """Whether a config only assigns literals, as mmengine writes it, and imports nothing else.

    mmengine imports the modules of `custom_imports`, of a `type` with dots and of a scope, reads
    `_base_` files, and replaces ``{{...}}`` by environment variables before it parses.
    """
    try:
        text = config.read_text(encoding='utf-8')
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return False
    plain = all(
        isinstance(node, _PLAIN)
        or (isinstance(node, ast.Call) and getattr(node.func, 'id', None) in ('dict', 'set'))
        for statement in module.body
        for node in ast.walk(statement)
    )
    return plain and '{{' not in text and all(map(_imports_nothing, _items(module)))


def _items(module: ast.Module) -> Iterator[tuple[object, ast.AST]]:
    """Yield the variables and the items of all dicts: name and value."""
    for node in ast.walk(module):
        if isinstance(node, ast.Assign):
            yield from ((getattr(target, 'id', ''), node.value) for target in node.targets)
        elif isinstance(node, ast.keyword):
            yield node.arg, node.value
        elif isinstance(node, ast.Dict):
            yield from (
                (getattr(key, 'value', None), value)
                for key, value in zip(node.keys, node.values, strict=True)
            )


def _imports_nothing(item: tuple[object, ast.AST]) -> bool:
    """Whether mmengine imports and reads no file for a variable or item of a config."""
    name, node = item
    constant = getattr(node, 'value', None) if isinstance(node, ast.Constant) else None
    if name == 'type':
        return isinstance(constant, str) and '.' not in constant and '::' not in constant
    if name in ('default_scope', '_scope_'):
        return constant in _SCOPES or constant is None
    if name == 'imports':
        values = [getattr(element, 'value', None) for element in getattr(node, 'elts', [])]
        return isinstance(node, (ast.List, ast.Tuple)) and all(v in _IMPORTS for v in values)
    return name != '_base_'


def _last_checkpoint(work_dir: Path) -> Path:
    named = Path((work_dir / LAST_CHECKPOINT).read_text(encoding='utf-8').strip())
    here = work_dir / named.name  # the folder may have been moved or copied
    path = here if here.is_file() else named
    if not path.is_file():
        raise FileNotFoundError(f'the last checkpoint of {str(work_dir)!r}, {named.name}, is gone')
    return path


def _short(text: str) -> str:
    return '/'.join(Path(text).parts[-2:]) if Path(text).exists() else text


def unique_names(sources: Sequence[Source]) -> list[Source]:
    """Number the sources whose names are equal."""
    counts = Counter(source.name for source in sources)
    seen: Counter[str] = Counter()
    named = []
    for source in sources:
        name = source.name
        if counts[name] > 1:
            seen[name] += 1
            name = f'{name} ({seen[name]})'
        named.append(source._replace(name=name))
    return named
