"""Read checkpoints as data: nothing that a file contains is executed.

Importing registers the loaders for mmengine's `CheckpointLoader`, through which its runner, `init_cfg`
and mmdet's tools read files. mmengine's own loaders unpickle fully where a safe load fails.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.hub import load_state_dict_from_url

_core: Any = getattr(np, '_core', None) or np.core


def _history_method(owner: Any, name: str) -> Any:
    """Replace `getattr`, with which a `HistoryBuffer` stores its statistics."""
    if owner is not HistoryBuffer or name not in ('mean', 'min', 'max', 'current'):
        raise pickle.UnpicklingError(f'Unsupported global getattr({owner}, {name!r})')
    return getattr(HistoryBuffer, name)


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    """Replace NumPy's `scalar`, which unpickles the data of objects."""
    if dtype.hasobject:
        raise pickle.UnpicklingError('Unsupported global numpy.scalar of objects')
    return np.frombuffer(data, dtype)[0]


ALLOWED: list[Any] = [
    HistoryBuffer,
    (_history_method, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    *(
        (function, f'{module}.multiarray.{name}')  # the modules of NumPy 1 and 2
        for function, name in ((_core.multiarray._reconstruct, '_reconstruct'), (_scalar, 'scalar'))
        for module in ('numpy.core', 'numpy._core')
    ),
    *{type(np.dtype(kind)) for kind in ('float32', 'float64', 'int32', 'int64', 'uint32', 'bool')},
]
"""Objects in the files of mmengine and mmdet, besides tensors and plain containers.

mmengine allows `getattr` and NumPy's `scalar` themselves. Files that this package writes need none of
these.
"""


def load_as_data(path: str | Path, map_location: Any = 'cpu') -> Any:
    """Read a `.pth` file with tensors, plain containers, numbers and strings, or a `.safetensors` file.

    Returns:
        The content; of a `.safetensors` file ``{'state_dict': tensors}``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file contains other objects, or cannot be read.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {str(path)!r} does not exist')
    try:
        if path.suffix == '.safetensors':
            return {'state_dict': load_file(path)}
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if 'GLOBAL' in str(error) or 'Unsupported' in str(error):
            raise ValueError(_refusal(str(path), error)) from None
        raise _unreadable(path, error) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _load_local(filename: str, map_location: Any = None) -> Any:
    return load_as_data(filename, map_location)


def _load_url(filename: str, map_location: Any = None, model_dir: str | None = None) -> Any:
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return load_state_dict_from_url(filename, model_dir, map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(filename, error)) from None


def _refuse(filename: str, map_location: Any = None) -> Any:
    scheme = filename.partition('://')[0]
    raise ValueError(
        f'checkpoint {filename!r}: {scheme}:// is not supported; give a path or an http(s) URL'
    )


def _refusal(name: str, error: Exception) -> str:
    return (
        f'checkpoint {name!r} contains objects other than tensors, containers, numbers and strings, '
        f'which may run any code and are not loaded ({_first_line(error)}). If you trust the file, '
        "write its weights alone: torch.save(torch.load(path, weights_only=False)['state_dict'], "
        "'weights.pth')"
    )


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f'checkpoint {str(path)!r} ({path.stat().st_size:,} bytes) cannot be read: it is truncated or '
        f'not a PyTorch file ({_first_line(error)})'
    )


def _first_line(error: BaseException) -> str:
    found = re.search(r'(?:GLOBAL|Unsupported \w+) (\S+)', str(error))
    return found[1] if found else next(iter(str(error).splitlines()), type(error).__name__)[:160]


for _prefix in CheckpointLoader._schemes:
    CheckpointLoader.register_scheme(_prefix, _refuse, force=True)
CheckpointLoader.register_scheme('', _load_local, force=True)
CheckpointLoader.register_scheme(('http://', 'https://'), _load_url, force=True)
