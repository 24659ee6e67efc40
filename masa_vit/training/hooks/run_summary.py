"""summary.json: the config, metrics and history of a run."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from masa_vit.training.checkpoint_files import SUMMARY
from masa_vit.training.hooks.finite import SKIPPED
from masa_vit.training.hooks.parameter_table import count_parameters
from masa_vit.utils.staging import write_atomically

_PACKAGES = (
    'masa-vit', 'torch', 'timm', 'torchvision', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection',
    'albumentations',
)  # fmt: skip
_HISTORY = 'summary_history'
_ELAPSED = 'epoch_seconds'


@HOOKS.register_module()
class SummaryHook(Hook):
    """Writes `summary.json` into the work dir after every epoch and at the end.

    Keys: `finished`; `config` (resolved); `seed`; `world_size`; `metrics` (`last` and `best` value
    of each, and `best_epoch`); `history` (a record per epoch); `parameters`; `samples` (train,
    val); `seconds` (`total`, and `epoch`: the median epoch's training); `skipped_steps` (see
    `FiniteHook`); `checkpoints` (`last`,
    `best`; when finished); `tensorboard`; `log`; `versions`; `commit` (of this package's checkout,
    if it is one).

    The history travels in the checkpoints, so the summary of a resumed run covers all of it.
    A metric with 'loss', 'nll' or 'error' in its name is best when least, any other when greatest.
    """

    priority = 'LOW'  # before the checkpoint, which carries the history

    def __init__(self) -> None:
        self._start = self._val_start = 0.0

    def before_train(self, runner: Any) -> None:
        """Collect the constant entries."""
        self._fixed = {
            'config': json.loads(json.dumps(runner.cfg.to_dict(), default=str)),
            'seed': runner.seed,
            'world_size': get_world_size(),
            'parameters': count_parameters(runner.model),
            'samples': {
                name: len(loop.dataloader.dataset)
                for name, loop in (('train', runner.train_loop), ('val', runner.val_loop))
                if loop is not None
            },
            'tensorboard': str(Path(runner.log_dir) / 'vis_data'),
            'log': str(runner.logger.log_file),
            'versions': {'python': platform.python_version(), **_versions()},
            'commit': package_commit(),
        }
        self._start = time.perf_counter()

    def before_train_epoch(self, runner: Any) -> None:
        """Start the epoch's clock, with the time that a stopped run spent in the epoch."""
        elapsed = runner.message_hub.runtime_info.get(_ELAPSED, 0.0)
        self._start = time.perf_counter() - elapsed

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Keep the clock, for a run that stops here."""
        runner.message_hub.update_info(_ELAPSED, time.perf_counter() - self._start)

    def after_train_epoch(self, runner: Any) -> None:
        """Record the epoch."""
        record = self._record(runner, runner.epoch + 1)
        record['seconds'] = time.perf_counter() - self._start
        runner.message_hub.update_info(_ELAPSED, 0.0)
        scalars = runner.message_hub.log_scalars
        if 'train/loss' in scalars:
            record['loss'] = float(scalars['train/loss'].mean(len(runner.train_dataloader)))
        self._write(runner)

    def before_val_epoch(self, runner: Any) -> None:
        """Start the validation's clock."""
        self._val_start = time.perf_counter()

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any] | None = None) -> None:
        """Record the metrics; after a resume, perhaps for the second time."""
        record = self._record(runner, runner.epoch)
        record['val_seconds'] = time.perf_counter() - self._val_start
        record['metrics'] = {k: float(v) for k, v in (metrics or {}).items() if _is_number(v)}
        self._write(runner)

    def after_run(self, runner: Any) -> None:
        """Write the final summary: all checkpoints are there now."""
        if hasattr(self, '_fixed'):
            self._write(runner, finished=True)

    def _record(self, runner: Any, epoch: int) -> dict[str, Any]:
        history = list(self._history(runner))
        if not history or history[-1]['epoch'] != epoch:
            history.append({'epoch': epoch})
        runner.message_hub.update_info(_HISTORY, history)
        return history[-1]

    @staticmethod
    def _history(runner: Any) -> list[dict[str, Any]]:
        return runner.message_hub.runtime_info.get(_HISTORY, [])

    @master_only
    def _write(self, runner: Any, finished: bool = False) -> None:
        history = self._history(runner)
        epochs = [record['seconds'] for record in history if 'seconds' in record]
        total = sum(r.get('seconds', 0.0) + r.get('val_seconds', 0.0) for r in history)
        summary = {
            'finished': finished,
            'epoch': history[-1]['epoch'] if history else 0,
            'metrics': _last_and_best(history),
            'seconds': {
                'total': total,
                'epoch': statistics.median(epochs) if epochs else None,
            },
            'skipped_steps': runner.message_hub.runtime_info.get(SKIPPED, 0),
            **self._fixed,
            'history': history,
        }
        if finished:
            info = runner.message_hub.runtime_info
            summary['checkpoints'] = {
                name: info[key]
                for name, key in (('last', 'last_ckpt'), ('best', 'best_ckpt'))
                if key in info
            }
        path = Path(runner.work_dir) / SUMMARY
        write_atomically(path, json.dumps(summary, indent=2) + '\n')


def _last_and_best(history: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    metrics: dict[str, dict[str, float]] = {}
    for record in history:
        for name, value in record.get('metrics', {}).items():
            entry = metrics.setdefault(name, {'best': value, 'best_epoch': record['epoch']})
            entry['last'] = value
            less = any(word in name.lower() for word in ('loss', 'nll', 'error'))
            if value < entry['best'] if less else value > entry['best']:
                entry.update(best=value, best_epoch=record['epoch'])
    return metrics


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        or getattr(value, 'size', None) == 1
        or (isinstance(value, torch.Tensor) and value.numel() == 1)
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def package_commit() -> str | None:
    """The commit of the checkout that this package runs from ('-dirty' when changed), or None."""
    root = Path(__file__).resolve().parents[3]
    if not (root / '.git').exists():
        return None
    try:
        result = subprocess.run(
            ['git', 'describe', '--always', '--abbrev=40', '--dirty', '--exclude=*'], cwd=root,
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
