"""Configs: found, merged with overrides, and checked for mistyped keys."""

from __future__ import annotations

import ast
import contextlib
import copy
import difflib
import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmengine.registry
from mmengine.config import Config, DictAction
from mmengine.config.config import ConfigParsingError
from mmengine.registry import Registry
from mmengine.runner import Runner as _Runner

from masa_vit.utils.config_paths import resolve_config

__all__ = [
    'KNOWN_KEYS',
    'DictAction',
    'explain_build_error',
    'load_config',
    'readable_errors',
]

# Keys that mmengine and its family read from a config beside the Runner's own parameters.
_EXTRA_KEYS = {
    'activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval',
    'find_unused_parameters', 'model_wrapper_cfg', 'sync_bn', 'tta_model', 'tta_pipeline',
}  # fmt: skip
# Customary names of variables, which only the config file itself uses.
_VARIABLES = {
    'train_pipeline', 'val_pipeline', 'test_pipeline', 'dataset_type', 'data_root', 'backend_args',
    'metainfo', 'train_dataset', 'val_dataset', 'test_dataset', 'vis_backends', 'norm_cfg',
    'albu_transforms', 'albu_train_transforms', 'image_size', 'conv_cfg', 'load_pipeline',
    'sup_pipeline', 'unsup_pipeline', 'weak_pipeline', 'strong_pipeline',
}  # fmt: skip
_READ_KEYS = (set(inspect.signature(_Runner.__init__).parameters) - {'self', 'cfg'}) | _EXTRA_KEYS
KNOWN_KEYS = _READ_KEYS | _VARIABLES


def load_config(config: str | Path | Config, cfg_options: dict[str, Any] | None = None) -> Config:
    """Load a config, apply overrides, and refuse mistyped top-level keys.

    A key is known when the Runner or its family reads it. A key that merely resembles one of these
    is an error, as is any unknown key that an override would create; other unknown keys are
    the user's variables (a dict among them causes a warning, for it may be meant for the
    Runner). Names with a leading underscore are never looked at.

    Args:
        config: path, `masa_vit::cls/x.py`, or a loaded config (which is copied).
        cfg_options: overrides by dotted key, e.g. `{'train_cfg.max_epochs': 2}`.

    Returns:
        The config.

    Raises:
        FileNotFoundError: the config or a base of it does not exist.
        ImportError: one of its `custom_imports` fails, or a base needs MMDetection.
        ValueError: the config does not parse, or a key is mistyped.
    """
    if isinstance(config, Config):
        cfg = config.copy()
    else:
        file = resolve_config(config)
        try:
            cfg = Config.fromfile(str(file))
        except (SyntaxError, NameError, KeyError, AttributeError, ConfigParsingError) as error:
            raise ValueError(
                f'config {str(config)!r} cannot be loaded: {type(error).__name__}: {error}'
            ) from error
        except ImportError as error:
            raise ImportError(f'config {str(config)!r}: {_why_not_imported(error)}') from error
    if cfg.get('default_scope') == 'mmdet':
        # also where custom_imports of the user's own have replaced ours
        import masa_vit.detection  # noqa: F401
    if cfg_options:
        before = set(cfg)
        for option in cfg_options:
            if option.split('.')[0] in _VARIABLES:
                raise ValueError(
                    f'--cfg-options {option}: this is a variable of the config file, which has been '
                    'read by now. Override the place that uses it, e.g. '
                    'train_dataloader.dataset.data_root=DIR.'
                )
        try:
            cfg.merge_from_dict(copy.deepcopy(cfg_options))  # a copy: merging removes `_delete_`
        except (KeyError, TypeError, IndexError, AttributeError, AssertionError) as error:
            raise ValueError(f'--cfg-options {cfg_options}: {error}') from error
        for key in set(cfg) - before - KNOWN_KEYS:
            given = next(k for k in cfg_options if k.split('.')[0] == key)
            raise ValueError(
                f'--cfg-options {given}: the config has no key {key!r}{_did_you_mean(key) or "."} '
                f'Its keys: {", ".join(sorted(before))}.'
            )
    _check_keys(cfg)
    return cfg


def _why_not_imported(error: ImportError) -> str:
    # of an entry of custom_imports mmengine says that it failed; its cause's context says why
    why = error.__cause__ and error.__cause__.__context__
    if why is None:
        return str(error)
    hint = ''
    if isinstance(why, ModuleNotFoundError):
        hint = '. A module of your own is found through PYTHONPATH, the list of folders to look in'
    return f'custom_imports: {why}{hint}'


def _check_keys(cfg: Config) -> None:
    for key, value in cfg.items():
        if key in KNOWN_KEYS or key.startswith('_') or inspect.isclass(value):
            continue
        hint = _did_you_mean(key, _READ_KEYS)
        if hint:
            raise ValueError(
                f'config {cfg.filename or ""}: unknown key {key!r}{hint} If it is a variable of '
                f'your own, begin its name with an underscore: _{key}.'
            )
        if isinstance(value, dict):
            warnings.warn(
                f'config {cfg.filename or ""}: the key {key!r} has no effect; a variable '
                f'of your own is better named _{key}.',
                stacklevel=3,
            )


def _did_you_mean(key: str, known: set[str] = KNOWN_KEYS) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    return f'; did you mean {close[0]!r}?' if close else ''


@contextlib.contextmanager
def readable_errors(cfg: Config) -> Iterator[None]:
    """Raise errors of a build from a config with their place in it."""
    try:
        yield
    except (TypeError, KeyError) as error:
        message = explain_build_error(error, cfg)
        if message is None:
            raise
        raise ValueError(message) from error


def explain_build_error(error: Exception, cfg: Config) -> str | None:
    """Explain a failed build by its place in the config.

    Args:
        error: raised by mmengine or a class in the config.
        cfg: the config that was being built.

    Returns:
        A message that names the place in the config, or None when the error is of another kind.
    """
    text = str(error.args[0]) if error.args else ''
    if match := re.search(
        r'(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument \'(\w+)\'', text
    ):
        name, argument = match.groups()
        for place, node in _walk(cfg):
            if argument in node and _type_name(node) in (name, None):
                options = _parameters(name)
                close = difflib.get_close_matches(argument, options, n=1)
                hint = f'; did you mean {close[0]!r}?' if close else '.'
                accepted = f' It takes: {", ".join(options)}.' if options else ''
                return f'config: {place}.{argument}: {name} has no such argument{hint}{accepted}'
    if match := re.search(r'^(\S+) is not in the (\S+)::(\w[\w ]*) registry', text):
        name, _, registry = match.groups()
        place = next((p for p, node in _walk(cfg) if _type_name(node) == name), '')
        names = _registered(registry)
        close = difflib.get_close_matches(name, names, n=3)
        hint = f' Did you mean {" or ".join(close)}?' if close else ''
        return (
            f'config: {place}.type: no {registry} is called {name!r}.{hint} If it is your own, '
            "name its module in custom_imports = dict(imports=['my.module'])."
        )
    return None


def _walk(node: Any, place: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, (dict, Config)):
        if place:
            yield place, dict(node.items())
        for key, value in node.items():
            yield from _walk(value, f'{place}.{key}' if place else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _walk(value, f'{place}[{index}]')


def _type_name(node: dict[str, Any]) -> str | None:
    kind = node.get('type')
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', None)


def _registries() -> list[Registry]:
    """mmengine's registries and those below them, as mmdet's are."""
    roots = [r for r in vars(mmengine.registry).values() if isinstance(r, Registry)]
    return [*roots, *(child for root in roots for child in root.children.values())]


def _registered(registry: str) -> list[str]:
    return [name for r in _registries() if r.name == registry for name in r.module_dict]


def _parameters(class_name: str) -> list[str]:
    for registry in _registries():
        if found := registry.module_dict.get(class_name):
            parameters = inspect.signature(found).parameters.values()
            return [
                p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            ]
    return []


def read_literals(text: str) -> dict[str, Any]:
    """Read the top-level variables of a config's text without executing it.

    Returns:
        Name -> value, of those variables that consist of literals and ``dict(...)``, as mmengine
        writes a resolved config. Others, and a text that is not Python, are left out.
    """
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found = {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            with contextlib.suppress(ValueError, RecursionError):
                found[statement.targets[0].id] = _literal(statement.value)
    return found


def _literal(node: ast.AST) -> Any:
    if isinstance(node, ast.Call) and getattr(node.func, 'id', None) == 'dict' and not node.args:
        return {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(element) for element in node.elts]
    return ast.literal_eval(node)
