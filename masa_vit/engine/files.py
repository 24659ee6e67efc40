"""Files of a run: atomic writes, checkpoints that can be read, work dirs that are free."""

from __future__ import annotations

import contextlib
import os
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
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = data.encode() if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp')
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files for the owner only
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
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
            f'checkpoint {str(path)!r} does not exist{_others(path.parent)}. Give the path of a '
            'file that training wrote (work_dirs/<config>/epoch_<n>.pth).'
        )
    try:
        checkpoint = load_as_data(path)
    except ValueError as error:
        raise ValueError(
            f'{error}. Use another checkpoint{_others(path.parent, but=path)}.'
        ) from None
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        raise ValueError(
            f'checkpoint {str(path)!r} holds no `state_dict`; expected a file that training wrote. '
            'Plain weights go into a model through `init_from` in its config.'
        )
    return checkpoint


def find_last_checkpoint(work_dir: str | Path) -> Path:
    """The checkpoint that a work dir's `last_checkpoint` names, also in a moved or copied folder.

    Raises:
        FileNotFoundError: the work dir has none.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / LAST_CHECKPOINT
    if pointer.is_file():
        named = Path(pointer.read_text(encoding='utf-8').strip())
        # a copied folder has its own files, also while the original exists
        for path in (work_dir / named.name, named):
            if path.is_file():
                return path
        raise FileNotFoundError(
            f'{str(pointer)!r} names {str(named)!r}, which does not exist{_others(work_dir)}. '
            'Resume from one of the files that exist: --resume PATH.'
        )
    raise FileNotFoundError(
        f'nothing to resume: work dir {str(work_dir)!r} has no checkpoint{_others(work_dir)}. '
        'Start without --resume, or give the right --work-dir or --resume PATH.'
    )


def check_work_dir_free(work_dir: str | Path) -> None:
    """Refuse a work dir that holds another run: its checkpoints or its summary.

    Logs and the dumped config of a run that ended before its first checkpoint do not count.

    Raises:
        ValueError: names what was found and the ways out.
    """
    work_dir = Path(work_dir)
    if work_dir.exists() and not work_dir.is_dir():
        raise ValueError(f'work dir {str(work_dir)!r} is a file; give a folder as --work-dir.')
    found = [name for name in (LAST_CHECKPOINT, SUMMARY) if (work_dir / name).exists()]
    found += sorted(path.name for path in work_dir.glob('*.pth'))
    if found:
        raise ValueError(
            f'work dir {str(work_dir)!r} holds another run ({", ".join(found[:4])}'
            f'{", ..." if len(found) > 4 else ""}); nothing was changed. Continue that run with '
            '--resume, choose another --work-dir, or remove the folder.'
        )


def _others(folder: Path, but: Path | None = None) -> str:
    names = sorted(path.name for path in folder.glob('*.pth') if path != but)
    return f' (in this folder: {", ".join(names[:6])})' if names else ''
