"""Files of a run: atomic writes, and checkpoints that can be read."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend, register_backend

from masa_vit.safe_loading import load_as_data

LAST_CHECKPOINT = 'last_checkpoint'
SUMMARY = 'summary.json'
METRICS = 'metrics.json'


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write a file so that a reader, at any moment, sees the old or the new one complete.

    Args:
        path: target; its folder is made when it does not exist.
        data: the whole content; text is encoded as UTF-8.

    Raises:
        OSError: also if the disk is full; the old file then is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = data.encode() if isinstance(data, str) else data
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp'
        )
        with os.fdopen(handle, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files for the owner only
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(path.parent).free
            raise OSError(
                f'cannot write {str(path)!r} ({len(content):,} bytes, {free:,} bytes free): '
                f'{error.strerror}. Files written before are unchanged: make room, then go on.'
            ) from error
        raise


@register_backend('atomic')
class AtomicBackend(LocalBackend):
    """mmengine's local files, written atomically and, inside `deferring`, removed late."""

    def __init__(self) -> None:
        self._deferred: list[str] | None = None

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes with `write_atomically`."""
        write_atomically(filepath, obj)

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
        FileNotFoundError: there is no such file.
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
        checkpoint = load_as_data(path)
    except ValueError as error:
        raise ValueError(
            f'{error}. Use another checkpoint{others_beside(path.parent, but=path)}.'
        ) from None
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        raise ValueError(
            f'checkpoint {str(path)!r} holds no `state_dict`; expected a file that training wrote. '
            'Plain weights go into a model through `init_from` in its config.'
        )
    return checkpoint


def others_beside(folder: Path, but: Path | None = None) -> str:
    """The other checkpoints of a folder, in brackets, for the end of a message."""
    names = sorted(path.name for path in folder.glob('*.pth') if path != but)
    return f' (in this folder: {", ".join(names[:6])})' if names else ''
