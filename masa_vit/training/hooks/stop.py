"""Stops a training on request, its state saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from masa_vit.training.hooks.safe_checkpoint import SafeCheckpointHook


@HOOKS.register_module()
class StopHook(Hook):
    """Ends the training after the step in which SIGTERM or SIGINT came.

    The state is saved by the run's `SafeCheckpointHook`. A validation is left at once: the epoch
    before it was saved, and resuming repeats it.
    """

    priority = 'LOWEST'

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save and stop, if any rank was asked to; accumulated gradients are applied first."""
        if runner.optim_wrapper.should_update() and runner.stop_request.of_any_rank():
            saved = None
            for hook in runner.hooks:
                if isinstance(hook, SafeCheckpointHook):
                    saved = hook.save_within_epoch(runner, batch_idx + 1)
            place = f'in epoch {runner.epoch + 1}, after iteration {runner.iter + 1}'
            raise runner.stop_request.error(place, saved)

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Stop the validation of an epoch."""
        training = isinstance(runner._train_loop, EpochBasedTrainLoop)
        if training and runner.stop_request.signal is not None:
            place = f'while validating epoch {runner.epoch}'
            raise runner.stop_request.error(place, Path(runner.work_dir))
