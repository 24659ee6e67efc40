"""The checkpoints of a run: written atomically, read as data.

Importing registers the loaders below for mmengine's `CheckpointLoader`, through which its runner,
`init_cfg` and mmdet's tools read files. mmengine's own loaders unpickle fully where a safe load fails.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.runner import CheckpointLoader

from masa_vit.utils.digests import add_digest
from masa_vit.utils.staging import write_atomically
from masa_vit.utils.weight_files import read_weight_file

LAST_CHECKPOINT = 'last_checkpoint'
SUMMARY = 'summary.json'
METRICS = 'metrics.json'


@register_backend('atomic')
class AtomicBackend(LocalBackend):
    """mmengine's local files, written atomically and, inside `deferring`, removed late."""

    def __init__(self) -> None:
        self._deferred: list[str] | None = None

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes with `write_atomically`, those of a checkpoint with a digest."""
        write_atomically(filepath, add_digest(obj) if str(filepath).endswith('.pth') else obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text with `write_atomically`."""
        write_atomically(filepath, obj.encode(encoding))

    def remove(self, filepath: str | Path) -> None:
        """Remove a file: now, or at the end of the enclosing `deferring`."""
        if self._deferred is None:
            super().remove(filepath)
        else:
            self._deferred.append(str(filepath))

    @contextlib.contextmanager
    def deferring(self) -> Iterator[list[str]]:
        """Collect removals and do them on leaving; the list may be edited until then."""
        self._deferred = []
        try:
            yield self._deferred
            files = self._deferred
        finally:
            self._deferred = None
        for file in files:
            if self.isfile(file):
                self.remove(file)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is truncated, not a checkpoint, contains objects that may run code, or
            holds no `state_dict`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f'checkpoint {str(path)!r} does not exist{others_beside(path.parent)}. Give the path of a '
            'file that training wrote (work_dirs/<config>/epoch_<n>.pth).'
        )
    try:
        checkpoint = read_weight_file(path)
    except ValueError as error:
        raise ValueError(
            f'{error}. Use another checkpoint{others_beside(path.parent, but=path)}.'
        ) from None
    if 'state_dict' not in checkpoint:
        raise ValueError(
            f'checkpoint {str(path)!r} holds no `state_dict`; expected a file that training wrote. '
            'Plain weights go into a model through `init_from` in its config.'
        )
    return checkpoint


def class_names(path: str | Path, num_classes: int) -> list[str] | None:
    """Return the class names in a checkpoint that training wrote; None if their number differs."""
    match read_weight_file(path):
        case {'meta': {'dataset_meta': {'classes': [*classes]}}} if len(classes) == num_classes:
            return classes if all(isinstance(name, str) for name in classes) else None
    return None


def others_beside(folder: Path, but: Path | None = None) -> str:
    """The other checkpoints of a folder, in brackets, for the end of a message."""
    names = sorted(path.name for path in folder.glob('*.pth') if path != but)
    return f' (in this folder: {", ".join(names[:6])})' if names else ''


def _load_local(filename: str, map_location: Any = None) -> Any:
    return read_weight_file(filename)


def _load_url(filename: str, map_location: Any = None, model_dir: str | None = None) -> Any:
    """Download into torch's cache, as `torch.hub.load_state_dict_from_url` does."""
    folder = Path(model_dir or Path(torch.hub.get_dir()) / 'checkpoints')
    path = folder / Path(urlparse(filename).path).name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(filename, str(path))
    return read_weight_file(path)


def _refuse(filename: str, map_location: Any = None) -> Any:
    scheme = filename.partition('://')[0]
    raise ValueError(
        f'checkpoint {filename!r}: {scheme}:// is not supported; give a path or an http(s) URL'
    )


for _prefix in CheckpointLoader._schemes:
    CheckpointLoader.register_scheme(_prefix, _refuse, force=True)
CheckpointLoader.register_scheme('', _load_local, force=True)
CheckpointLoader.register_scheme(('http://', 'https://'), _load_url, force=True)
