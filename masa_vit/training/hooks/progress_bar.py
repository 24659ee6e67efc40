"""A live progress bar, on a terminal only."""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows epoch, loss, learning rate and time left while stdout is a terminal.

    While it shows, the lines of training iterations go to the log file only; without a terminal
    the plain lines stand alone. The log file is the same in both cases.
    """

    priority = 'LOW'

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None
        self._handlers: list[tuple[logging.StreamHandler, Any]] = []

    def before_train(self, runner: Any) -> None:
        """Start the bar."""
        if not (is_main_process() and sys.stdout.isatty()):
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn('left'),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn('{task.fields[status]}'),
        )
        self._task = self._progress.add_task(
            'training', total=runner.max_iters, completed=runner.iter, status=''
        )
        self._progress.start()
        # rich has put its own stdout in place; the log's lines must go above the bar
        for handler in runner.logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(
                handler, logging.FileHandler
            ):
                self._handlers.append((handler, handler.setStream(sys.stdout)))
                handler.addFilter(_not_a_training_line)

    def before_train_epoch(self, runner: Any) -> None:
        """Name the epoch."""
        if self._progress:
            name = f'epoch {runner.epoch + 1}/{runner.max_epochs}'
            self._progress.update(self._task, description=name)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Advance by an iteration."""
        if self._progress:
            status = f'lr {next(iter(runner.optim_wrapper.get_lr().values()))[0]:.2e}'
            if outputs and 'loss' in outputs:
                status = f'loss {torch.as_tensor(outputs["loss"]).item():.3f}  {status}'
            self._progress.update(self._task, completed=runner.iter + 1, status=status)

    def after_train(self, runner: Any) -> None:
        """Take the bar away."""
        self.close()

    def close(self) -> None:
        """Stop the bar, also after an error."""
        if self._progress:
            self._progress.stop()
            self._progress = None
        for handler, stream in self._handlers:
            handler.setStream(stream)
            handler.removeFilter(_not_a_training_line)
        self._handlers = []


def _not_a_training_line(record: logging.LogRecord) -> bool:
    # mmengine colours the word in brackets: the text behind it is not compared
    return not record.getMessage().startswith(('Epoch(train)', 'Iter(train)'))
