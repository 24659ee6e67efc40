"""Read files with weights: checked first, loaded as data.

Every command reads through this module. A file is a `.safetensors` file, or one of `torch.save` with
tensors, plain containers, numbers and strings: nothing in it is executed, and its shapes are compared
with its size.
"""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from timm.models import clean_state_dict

from masa_vit.utils.digests import DIGEST, digest_of_archive, digest_of_tensors

_WEIGHTS = ('state_dict_ema', 'model_ema', 'state_dict', 'model')
"""Where weights lie in checkpoints, averaged ones first: timm's order."""

_MAX_DEPTH = 100
_ITEMS = 1000  # a small file may have this many items more than bytes
_TIMES_SHARED = 16  # tensors of a checkpoint may share storage: at most this multiple of its size


def read_weight_file(path: str | Path) -> dict[str, Any]:
    """Read a file with weights, on the CPU.

    Returns:
        The content; of a `.safetensors` file ``{'state_dict': tensors}``.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is damaged, contains other objects than tensors, containers, numbers and
            strings, or tensors that are not finite or larger than the file. The message names it.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise FileNotFoundError(
            f'{str(path)!r} is a folder, not a checkpoint: give a file in it, or create the model of '
            f"a Hugging Face folder by timm.create_model('local-dir:{path}', pretrained=True)"
        )
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {str(path)!r} does not exist')
    with _named(path):
        content = _read(path)
        _check_content(content, path.stat().st_size)
    return content


def read_safetensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a `.safetensors` file.

    Raises:
        ValueError: As `read_weight_file`.
    """
    path = Path(path)
    with _named(path):
        tensors, metadata = _read_safetensors(path)
        _check_content(tensors, path.stat().st_size)
    return tensors, metadata


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file into a ValueError that names it."""
    try:
        yield
    except RefusedError as error:
        raise ValueError(f'checkpoint {str(path)!r} is refused: {error}') from None
    except Exception as error:  # libraries raise errors of all kinds for damaged files
        raise ValueError(
            f'checkpoint {str(path)!r} ({path.stat().st_size:,} bytes) cannot be read: it is damaged, '
            f'truncated or not a file of weights ({_first_line(error)})'
        ) from error


def weights_in(content: Mapping[str, Any], path: str | Path) -> dict[str, torch.Tensor]:
    """The weights in the content of a file: averaged ones first, without wrappers.

    Raises:
        ValueError: If there are none, or other things among them.
    """
    key = next((key for key in _WEIGHTS if isinstance(content.get(key), Mapping)), None)
    weights = content if key is None else content[key]
    if not weights:
        raise ValueError(f'checkpoint {str(path)!r} holds no weights: {key or "it"} is empty')
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f'checkpoint {str(path)!r} holds no weights: in {key or "it"}, {name!r} is a '
                f'{type(value).__name__}, expected names of tensors'
            )
    return clean_state_dict(weights)


class RefusedError(Exception):
    """A file can be read but is not trusted; the message gives the reason. Raised within this module."""


def _read(path: Path) -> dict[str, Any]:
    with path.open('rb') as file:
        start = file.read(9)
    if start[:2] == b'PK':
        _check_archive(path)
    elif path.suffix == '.safetensors' or start[8:9] == b'{':
        return {'state_dict': _read_safetensors(path)[0]}
    try:
        with torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'Detected pickle protocol')
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search('GLOBAL|Unsupported (global|class)', str(error)):
            raise RefusedError(
                'it contains objects other than tensors, containers, numbers and strings, which may run '
                f'any code ({_first_line(error)}). If you trust the file, write only its weights: '
                "torch.save(torch.load(path, weights_only=False)['state_dict'], 'weights.pth')"
            ) from None
        raise


# --- the archive of torch.save, and safetensors ---


def _check_archive(path: Path) -> None:
    """Compare sizes, checksums and, in files of ours, the digest: torch looks at none of them."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise RefusedError('its members are compressed, as torch does not write them')
        if any(member.external_attr & 0x10 or member.flag_bits & ~0x808 for member in members):
            # torch would read a member that is marked as a folder as no bytes at all
            raise RefusedError('a member is marked as a folder or encrypted')
        if sum(member.file_size for member in members) > size:
            raise RefusedError('its members are larger than the file')
        if len({member.filename for member in members}) < len(members):
            raise RefusedError('two members have one name')
        digest = digest_of_archive(archive)  # reading a member compares its CRC
        found = [m for m in members if m.filename.rpartition('/')[2] == DIGEST]
        if found and archive.read(found[0]).decode('ascii') != digest:
            raise RefusedError('it is damaged or truncated: its content does not have its digest')


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    _check_safetensors(path)
    with safe_open(path, framework='pt') as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        return tensors, file.metadata() or {}


def _check_safetensors(path: Path) -> None:
    """Compare the digest of a file of ours; the library checks sizes and offsets."""
    with path.open('rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        if length > path.stat().st_size:
            raise ValueError('the header is larger than the file')
        header = json.loads(file.read(length))
        metadata = header.get('__metadata__') or {}
        marks = {DIGEST, 'written_by'} & set(metadata)
        if DIGEST not in marks and metadata.get('written_by') != 'masa_vit':
            return
        if len(marks) < 2 or metadata[DIGEST] != digest_of_tensors(header, file.read()):
            raise RefusedError('it is damaged or truncated: its content does not have its digest')


# --- objects besides tensors and containers in the files of mmengine and mmdet ---

_core: Any = getattr(np, '_core', None) or np.core


class _History:
    """Replaces mmengine's `HistoryBuffer` where mmengine is not imported."""


def _history_buffer() -> type:
    module = sys.modules.get('mmengine.logging.history_buffer')
    return module.HistoryBuffer if module else _History


def _history_method(owner: Any, name: str) -> Any:
    """Replace `getattr`, with which a `HistoryBuffer` stores its statistics."""
    if owner is not _history_buffer() or name not in ('mean', 'min', 'max', 'current'):
        raise pickle.UnpicklingError(f'Unsupported global getattr({owner}, {name!r})')
    return getattr(owner, name, None)


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    """Replace NumPy's `scalar`, which unpickles the data of objects."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise pickle.UnpicklingError('Unsupported global numpy.scalar of objects')
    return np.frombuffer(data, dtype)[0]


def _allowed() -> list[Any]:
    """Return the types that `torch.load` may build; files of ours need none of them.

    mmengine allows `getattr` and NumPy's `scalar` themselves.
    """
    return [
        (_history_buffer(), 'mmengine.logging.history_buffer.HistoryBuffer'),
        (_history_method, 'builtins.getattr'),
        np.ndarray,
        np.dtype,
        *(
            (function, f'{module}.multiarray.{name}')  # the modules of NumPy 1 and 2
            for function, name in (
                (_core.multiarray._reconstruct, '_reconstruct'),
                (_scalar, 'scalar'),
            )
            for module in ('numpy.core', 'numpy._core')
        ),
        *{
            type(np.dtype(kind))
            for kind in ('float32', 'float64', 'int32', 'int64', 'uint32', 'bool')
        },
    ]


# --- the content ---


def _check_content(content: Any, size: int) -> None:
    """Check structure, shapes and values of the content of a file of `size` bytes."""
    if not isinstance(content, Mapping):
        raise RefusedError(f'it holds a {type(content).__name__}, expected a mapping with weights')
    logical = 0
    for place, value in walk(content, size + _ITEMS):
        if isinstance(value, torch.Tensor):
            logical += _check_tensor(place, value, size)
    if logical > _TIMES_SHARED * size + (1 << 20):
        raise RefusedError(f'its tensors would have {logical:,} bytes, the file has {size:,}')
    for name in ('meta', 'state_dict'):
        if name in content and not isinstance(content[name], Mapping):
            kind = type(content[name]).__name__
            raise RefusedError(f'{name!r} is a {kind}, expected a mapping')
    _check_names(content.get('state_dict', {}))
    if fault := find_not_finite(content):
        raise RefusedError(f'{fault}, as of a training that diverged')


def find_not_finite(content: Mapping[str, Any]) -> str | None:
    """Describe the first tensor with NaN or infinite values; metrics (`message_hub`) may have them."""
    for place, value in walk({k: v for k, v in content.items() if k != 'message_hub'}):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            finite = torch.isfinite(value)
            if not finite.all():
                count = int((~finite).sum())
                return f'{place} has {count:,} of {value.numel():,} values that are NaN or infinite'
    return None


def _check_names(weights: Mapping[Any, Any]) -> None:
    for key, value in weights.items():
        if not isinstance(key, str):
            raise RefusedError(f"'state_dict' has the key {key!r}, expected names of tensors")
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise RefusedError(f"'state_dict' has a {kind} at {key!r}, expected a tensor")


def _check_tensor(place: str, tensor: torch.Tensor, size: int) -> int:
    """Check that a tensor is a plain one within its storage; return its bytes."""
    kind = type(tensor).__name__
    if kind not in ('Tensor', 'Parameter') or tensor.layout != torch.strided or tensor.is_nested:
        raise RefusedError(
            f'{place} is a {kind} of layout {tensor.layout}, expected a plain tensor'
        )
    if tensor.is_quantized or tensor.is_meta:
        raise RefusedError(f'{place} is quantized or has no values, expected a plain tensor')
    if (bytes_ := tensor.numel() * tensor.element_size()) > size:
        raise RefusedError(
            f'{place} of shape {tuple(tensor.shape)} would have {bytes_:,} bytes, the file has {size:,}'
        )
    return bytes_


def walk(content: Any, limit: float = math.inf) -> Iterator[tuple[str, Any]]:
    """Yield all items of nested containers, with their places; shared ones as often as they occur.

    Raises:
        RefusedError: If there are more than `limit`, or they are nested more than 100 deep.
    """
    stack = [('', content, 0)]
    while stack:
        place, value, depth = stack.pop()
        yield place, value
        if isinstance(value, Mapping):
            items = [(f'{place}.{key}' if place else str(key), item) for key, item in value.items()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            items = [(f'{place}[{index}]', item) for index, item in enumerate(value)]
        else:
            continue
        limit -= len(items)
        if limit < 0 or depth >= _MAX_DEPTH:
            raise RefusedError('its containers hold more items than the file can, or are too deep')
        stack += [(name, item, depth + 1) for name, item in reversed(items)]


def _first_line(error: BaseException) -> str:
    found = re.search(r'(?:GLOBAL|Unsupported (?:class|global):?) (\S+)', str(error))
    return found[1] if found else next(iter(str(error).splitlines()), type(error).__name__)[:160]
