"""The work dir of a training: its lock, and the checkpoint to resume from."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mmengine.config import Config

from masa_vit.training.checkpoint_files import LAST_CHECKPOINT, SUMMARY, others_beside
from masa_vit.utils.messages import first_of

LOCK = '.lock'
# the loader workers of a process that was killed may hold its lock a few seconds longer
_PATIENCE = 10.0  # seconds


@contextlib.contextmanager
def locked(work_dir: str | Path) -> Iterator[None]:
    """Lock a work dir, which is created if necessary.

    The operating system releases the lock of a dead process. Files that a killed run was writing are
    removed. A folder that was made here is removed again if an error leaves nothing in it.

    Raises:
        ValueError: another training is running in the work dir.
    """
    work_dir = _folder(work_dir)
    existed = work_dir.exists()
    work_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work_dir / LOCK)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise ValueError(
            f'another training is running in the work dir {str(work_dir)!r}; nothing was changed. Wait '
            'for its end, stop it, or choose another --work-dir.'
        ) from None
    except NotImplementedError:
        warnings.warn(
            f'the file system of {str(work_dir)!r} has no locks: a second training in it is not noticed',
            stacklevel=2,
        )
    try:
        for name in ('*.pth', LAST_CHECKPOINT, SUMMARY):
            for stray in work_dir.glob(f'.{name}.*.tmp'):
                stray.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
        if not existed and {path.name for path in work_dir.iterdir()} <= {LOCK}:
            (work_dir / LOCK).unlink(missing_ok=True)
            work_dir.rmdir()


def find_last_checkpoint(work_dir: str | Path) -> Path | None:
    """The checkpoint that a work dir's `last_checkpoint` names, also in a moved or copied folder.

    Without that file, a single checkpoint: its run was stopped just after writing it.

    Returns:
        The path, or None where there is no checkpoint.

    Raises:
        FileNotFoundError: the named file does not exist.
        ValueError: there are several checkpoints and none is named.
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
            f'{str(pointer)!r} names {str(named)!r}, which does not exist{others_beside(work_dir)}. '
            'Resume from one of the files that exist: --resume PATH.'
        )
    found = sorted(work_dir.glob('*.pth'))
    if len(found) > 1:
        raise ValueError(
            f'work dir {str(work_dir)!r} has no {LAST_CHECKPOINT!r}, which names the checkpoint to '
            f'resume from{others_beside(work_dir)}. Choose one: --resume PATH.'
        )
    return found[0] if found else None


def check_work_dir_free(work_dir: str | Path) -> None:
    """Refuse a work dir that holds another run: its checkpoints, or the summary of a finished run.

    The files of a run that ended before its first checkpoint do not count.

    Raises:
        ValueError: the work dir holds another run.
    """
    work_dir = _folder(work_dir)
    found = [LAST_CHECKPOINT] if (work_dir / LAST_CHECKPOINT).exists() else []
    found += sorted(path.name for path in work_dir.glob('*.pth'))
    if not found and _is_finished(work_dir / SUMMARY):
        found = [SUMMARY]
    if found:
        raise ValueError(
            f'work dir {str(work_dir)!r} holds another run ({first_of(found)}); nothing was changed. '
            'Continue that run with --resume, choose another --work-dir, or remove the folder.'
        )


def read_summary(work_dir: Path) -> dict[str, Any]:
    """Read the `summary.json` of a run; empty before the end of its first epoch."""
    path = work_dir / SUMMARY
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}


def check_same_recipe(cfg: Config, work_dir: Path) -> None:
    """Refuse to continue, or to compare, a run of another recipe.

    Raises:
        ValueError: If the run in the work dir was trained by another config.
    """
    if not (summary := read_summary(work_dir)):
        return
    now = json.loads(json.dumps(cfg.to_dict(), default=str))
    for key in ('model', 'train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg'):
        if now.get(key) != summary['config'].get(key):
            raise ValueError(
                f'{str(work_dir)!r} holds a run of another recipe ({key} differs). Use another '
                '--work-dir, or the same options'
            )


def _folder(work_dir: str | Path) -> Path:
    work_dir = Path(work_dir)
    if work_dir.exists() and not work_dir.is_dir():
        raise ValueError(f'work dir {str(work_dir)!r} is a file; give a folder as --work-dir.')
    return work_dir


def _is_finished(summary: Path) -> bool:
    try:
        return bool(json.loads(summary.read_text(encoding='utf-8'))['finished'])
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError, OSError):
        return True  # not of a killed run: that writes the file whole
