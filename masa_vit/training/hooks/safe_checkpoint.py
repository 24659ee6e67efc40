"""Atomic checkpoints with exact resume."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import barrier, get_world_size, is_main_process
from mmengine.fileio import get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS

from masa_vit.training.checkpoint_files import LAST_CHECKPOINT
from masa_vit.training.seeding import TrainLoop
from masa_vit.training.wrapped_models import unwrap
from masa_vit.utils.staging import write_atomically
from masa_vit.utils.weight_files import find_not_finite


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook with atomic files and exact resume.

    - Files are written under a temporary name and renamed; an old checkpoint is removed only
      when the new one is complete. Weights that are not finite are not saved.
    - `torch.load(path, weights_only=True)` reads them: the message hub is stored as plain data.
    - A run stopped between the checkpoint of an epoch and its validation validates on resuming.
    - Gradients that accumulation has not applied at the end of an epoch are kept (one process;
      with several, mmengine warns and drops them).

    - A run stopped on request is saved within its epoch, as `stopped_iter_<n>.pth`; the next
      regular checkpoint replaces that file.

    Random states need no saving: see `masa_vit.training.seeding`.

    Args:
        **kwargs: those of mmengine's CheckpointHook, except `file_client_args` and `backend_args`.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault('interval', 1)
        super().__init__(backend_args=dict(backend='atomic'), **kwargs)
        self.keep_ckpt_ids: deque[int] = deque()
        self._validated = False
        self._gradients: dict[str, torch.Tensor] = {}
        self._batch = 0

    def before_train(self, runner: Any) -> None:
        """Check `save_best`, and restore the state of a resumed run."""
        self._check_save_best(runner)
        super().before_train(runner)
        self.file_backend = get_file_backend(self.out_dir, backend_args=self.backend_args)
        self._adopt_best()
        if runner._resume and is_main_process():
            self._remove(
                runner.message_hub.runtime_info.get('outdated_ckpt'), Path(runner._load_from)
            )
        for name, parameter in unwrap(runner.model).named_parameters():
            if name in self._gradients:
                parameter.grad = self._gradients[name].to(parameter)
        self._gradients = {}
        loop = runner.train_loop
        due = loop.epoch % loop.val_interval == 0 or loop.epoch == loop.max_epochs
        if self.by_epoch and runner._resume and runner.val_loop is not None and not self._validated:
            if loop.epoch >= loop.val_begin and due:
                runner.logger.info(f'Validating epoch {loop.epoch}, as the stopped run had not')
                runner.val_loop.run()

    def after_train_epoch(self, runner: Any) -> None:
        """Save the epoch, not validated yet."""
        self._validated = False
        super().after_train_epoch(runner)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint plain data and add the state for resuming."""
        _check_finite(checkpoint)
        checkpoint['message_hub'] = _to_plain(checkpoint['message_hub'])
        checkpoint['meta'] = {
            **_to_plain(checkpoint['meta']),
            'validated': self._validated,
            'world_size': get_world_size(),
            'batch': self._batch,
            'num_batches': len(runner.train_dataloader),
        }
        if 'optimizer' in checkpoint and not runner.optim_wrapper.should_update():
            if get_world_size() == 1:
                checkpoint['gradients'] = {
                    name: parameter.grad.detach().cpu()
                    for name, parameter in unwrap(runner.model).named_parameters()
                    if parameter.grad is not None
                }

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Store the state for `before_train`, and restore the buffers of the message hub."""
        if 'message_hub' in checkpoint:
            checkpoint['message_hub'] = _from_plain(checkpoint['message_hub'])
        if runner._resume:
            meta = checkpoint['meta']
            world_size = meta.get('world_size', get_world_size())
            if world_size != get_world_size():
                raise ValueError(
                    f'the run to resume had {world_size} processes, this one has '
                    f'{get_world_size()}: its epochs have another number of steps. Start the '
                    'same number of processes.'
                )
            num_batches = len(runner.train_dataloader)
            if meta.get('num_batches', num_batches) != num_batches:
                raise ValueError(
                    f'the run to resume had {meta["num_batches"]} batches in an epoch, this one has '
                    f'{num_batches}: its training data have changed. Restore them, or start a new run '
                    'from its weights (init_from of a classifier, load_from).'
                )
            if meta.get('batch'):
                if not isinstance(runner.train_loop, TrainLoop):
                    raise ValueError(
                        f'the run to resume stopped within an epoch, where {type(runner.train_loop)} '
                        'cannot continue; expected train_cfg=dict(by_epoch=True, ...).'
                    )
                runner.train_loop.batches_done = meta['batch']
            self._gradients = checkpoint.get('gradients', {})
            self._validated = meta.get('validated', True)

    def save_within_epoch(self, runner: Any, batch: int) -> Path:
        """Save a training that is about to stop.

        Args:
            runner: of the training, in `after_train_iter`.
            batch: number of batches of this epoch that have been trained on.

        Returns:
            The path of the checkpoint.
        """
        self._batch = batch if isinstance(runner.train_loop, TrainLoop) else 0
        self._save(runner, f'{_STOPPED}{runner.iter + 1}.pth', {}, by_epoch=False)
        self._batch = 0
        barrier()  # no rank ends before the file is complete
        return Path(str(self.last_ckpt))

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        # mmengine's removes the outdated checkpoint first and writes `last_checkpoint` in place
        outdated = None
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids = deque([*self.keep_ckpt_ids, step], self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
            # the new checkpoint names it: a run killed before its removal removes it on resuming
            runner.message_hub.update_info('outdated_ckpt', outdated)
        self._save(runner, self.filename_tmpl.format(step), meta, self.by_epoch, outdated)

    def _save(
        self,
        runner: Any,
        filename: str,
        meta: dict[str, Any],
        by_epoch: bool,
        outdated: str | None = None,
    ) -> None:
        """Write a checkpoint, then the pointer to it, then remove the files that it replaces."""
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            filename,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_atomically(Path(runner.work_dir) / LAST_CHECKPOINT, self.last_ckpt)
            self._remove(outdated, Path(self.last_ckpt))

    def _remove(self, outdated: str | None, current: Path) -> None:
        """Remove a checkpoint that is no longer kept, and those of earlier stops."""
        paths = [*Path(self.out_dir).glob(f'{_STOPPED}*.pth')]
        if outdated is not None:
            paths.append(Path(self.out_dir) / outdated)
        for path in paths:
            if path.resolve() != current.resolve() and path.is_file():
                self.file_backend.remove(path)

    def _save_best_checkpoint(self, runner: Any, metrics: dict[str, Any]) -> None:
        self._validated = True
        with self.file_backend.deferring() as removals:
            super()._save_best_checkpoint(runner, metrics)
            # a validation repeated after a resume may have written the same name again
            # and a run resumed from another folder does not change the files there
            removals[:] = [
                path
                for path in removals
                if path not in self._best_paths() and Path(path).parent == Path(self.out_dir)
            ]

    def _check_save_best(self, runner: Any) -> None:
        """Refuse a metric that no evaluator has: mmengine would end the run after the validation."""
        if not self.save_best or runner.val_loop is None:
            return
        prefixes = {metric.prefix for metric in runner.val_evaluator.metrics}
        if None in prefixes:  # such a metric may give any names
            return
        for key in self.key_indicators:
            if key != 'auto' and key.rpartition('/')[0] not in prefixes:
                known = ', '.join(f'{name}/...' for name in sorted(prefixes))
                raise ValueError(
                    f'default_hooks.checkpoint.save_best={key!r}, but the metrics of val_evaluator are '
                    f"named {known}: choose one of them, or 'auto' for the first"
                )

    def _adopt_best(self) -> None:
        """Find the best checkpoint of a resumed run also where its folder has moved."""
        best: str | None = getattr(self, 'best_ckpt_path', None)
        if best and (Path(self.out_dir) / Path(best).name).is_file():
            self.best_ckpt_path = str(Path(self.out_dir) / Path(best).name)

    def _best_paths(self) -> list[str | None]:
        if not self.save_best:
            return []
        if len(self.key_indicators) == 1:
            return [self.best_ckpt_path]
        return list(self.best_ckpt_path_dict.values())


_STOPPED = 'stopped_iter_'
_BUFFER = '__history_buffer__'


def _check_finite(checkpoint: dict[str, Any]) -> None:
    """Refuse to save weights that are not finite: the file would replace a good one."""
    if fault := find_not_finite(checkpoint):
        meta = checkpoint['meta']
        raise ValueError(
            f'{fault} in epoch {meta["epoch"]}, iteration {meta["iter"]}; nothing was saved, the '
            'checkpoint before is kept. Resume from it with a smaller learning rate, or with clip_grad.'
        )


def _to_plain(value: Any) -> Any:
    """Convert to containers, numbers, strings and tensors, which `weights_only=True` loads."""
    if isinstance(value, HistoryBuffer):
        history, counts = value.data
        tensors = [torch.as_tensor(np.asarray(v, dtype=np.float64)) for v in (history, counts)]
        return {_BUFFER: tensors, 'max_length': value.max_length}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {k: _to_plain(v) for k, v in value.items()}
    if type(value) in (list, tuple):  # not named tuples
        return type(value)(map(_to_plain, value))
    return value


def _from_plain(value: Any) -> Any:
    """The inverse of `_to_plain` for history buffers."""
    if isinstance(value, dict):
        if _BUFFER in value:
            history, counts = (tensor.cpu().numpy() for tensor in value[_BUFFER])
            return HistoryBuffer(history, counts, value['max_length'])
        return {k: _from_plain(v) for k, v in value.items()}
    return value
