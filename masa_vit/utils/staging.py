"""Atomic writes; existing files are replaced on request only."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write a file so that a reader, at any moment, sees the old or the new one complete.

    Args:
        path: Target; its folder is created if necessary.
        data: The whole content; text is encoded as UTF-8.

    Raises:
        OSError: If the disk is full, for example; the old file is unchanged.
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
        _give_default_mode(temporary)  # mkstemp makes files for the owner only
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


def check_free(folder: Path, names: Sequence[str], force: bool) -> None:
    """Check that the output files do not exist, or may be replaced.

    Raises:
        FileExistsError: If a file exists and `force` is not set.
        IsADirectoryError: If there is a folder of a file's name.
        NotADirectoryError: If `folder` is a file, or is in one.
    """
    at = _existing(folder)
    if not at.is_dir():
        raise NotADirectoryError(f'{str(at)!r} is a file, expected a folder to write into')
    for path in (folder / name for name in names):
        if path.is_dir():
            raise IsADirectoryError(
                f'{str(path)!r} is a folder, expected a file to write, or nothing'
            )
        if path.exists() and not force:
            raise FileExistsError(f'{str(path)!r} exists; --force (force=True) replaces it')


def check_writable(folder: Path) -> None:
    """Check that a folder can be written, or created.

    Raises:
        PermissionError: With the reason.
    """
    os.rmdir(_make_stage(_existing(folder)))


def check_file(path: Path, force: bool) -> None:
    """Check that a file can be written, and does not exist unless `force` is set.

    Raises:
        OSError: As `check_free` and `check_writable`.
    """
    check_free(path.parent, [path.name], force)
    check_writable(path.parent)


@contextmanager
def staged(folder: str | Path, names: Sequence[str], force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder whose files move to `folder` if no error is raised.

    Args:
        folder: Where the files are to be; made if it does not exist.
        names: Of the files.
        force: Replace files of these names; others are never changed.

    Raises:
        OSError: As `check_free`, or if `folder` cannot be written.
    """
    folder = Path(folder)
    check_free(folder, names, force)
    # on the same file system, so that moving them cannot fail halfway
    stage = Path(_make_stage(_existing(folder)))
    try:
        yield stage
        folder.mkdir(parents=True, exist_ok=True)
        check_free(folder, names, force)
        for name in names:
            _give_default_mode(stage / name)  # safetensors makes files for the owner only
            os.replace(stage / name, folder / name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def total_size(stage: Path, names: Sequence[str]) -> int:
    """Return the number of bytes of files."""
    return sum((stage / name).stat().st_size for name in names)


def _existing(folder: Path) -> Path:
    """Return the folder or its nearest existing parent."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _give_default_mode(path: str | Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)


def _make_stage(folder: Path) -> str:
    try:
        return tempfile.mkdtemp(prefix='.staged_', dir=folder)
    except OSError as error:
        raise PermissionError(
            f'cannot write into {str(folder)!r}: {error.strerror or error}'
        ) from error
