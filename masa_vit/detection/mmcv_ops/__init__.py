"""Operators of torchvision where mmcv has no compiled ones, so that no compiler is needed.

`install` makes ``mmcv._ext`` importable where it is missing. Its functions have the names,
arguments and results of mmcv's, which write into tensors that the caller made.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

from masa_vit.detection.mmcv_ops import boxes, deform, deform_attention, losses, rois
from masa_vit.detection.mmcv_ops.common import HOW_TO_COMPILE, OPERATORS, refuse

__all__ = ['boxes', 'deform', 'deform_attention', 'install', 'losses', 'rois']

_EXT = 'mmcv._ext'


def install() -> bool:
    """Install the substitute for ``mmcv._ext``, unless mmcv has compiled operators.

    Calling it again changes nothing.

    Returns:
        Whether the substitute is installed.

    Raises:
        ImportError: mmcv has compiled operators and they cannot be loaded.
    """
    if _EXT in sys.modules:
        return isinstance(sys.modules[_EXT], _StandIn)
    spec = importlib.util.find_spec(_EXT)
    if spec is None:
        # the last finder: a compiled module would be found before
        sys.meta_path.append(_Finder())
    try:
        importlib.import_module(_EXT)
    except (ImportError, OSError) as error:
        raise ImportError(
            f'the compiled operators of mmcv cannot be loaded: {error}\n'
            'They were probably built for another version of torch. Install mmcv without them '
            '(pip uninstall onedl-mmcv; pip install onedl-mmcv), masa_vit then uses '
            f"torchvision's; or compiled for this torch: {HOW_TO_COMPILE}"
        ) from error
    if spec is None:
        _replace_placeholders()
    return spec is None


class _StandIn(types.ModuleType):
    """``mmcv._ext`` with the operators of this package; any other refuses when called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # on import mmcv.ops asks whether its operators are there
        if name.startswith('_'):
            raise AttributeError(f'module {_EXT!r} has no attribute {name!r}')
        return functools.partial(refuse, f'operator {name!r}')


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, origin=__name__) if fullname == _EXT else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name, __doc__)

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module).update(
            OPERATORS,
            get_compiler_version=lambda: f'none ({__name__})',
            get_compiling_cuda_version=lambda: 'not available',
        )


def _replace_placeholders() -> None:
    """Give the operators to those modules of mmdet that were imported without them.

    Where mmcv.ops cannot be imported, mmdet's modules define functions and classes of the same
    names, with nothing but ``*args, **kwargs``, that raise RuntimeError when called.
    """
    for module in [m for name, m in sys.modules.items() if name.startswith('mmdet.')]:
        for name, value in list(vars(module).items()):
            if getattr(value, '__module__', None) != module.__name__:
                continue
            code = getattr(value.__init__ if inspect.isclass(value) else value, '__code__', None)
            if code and code.co_varnames in {('args', 'kwargs'), ('self', 'args', 'kwargs')}:
                ops = importlib.import_module('mmcv.ops')
                setattr(module, name, getattr(ops, name.lstrip('_'), value))
