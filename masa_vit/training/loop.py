"""A training loop by epochs that can resume within an epoch."""

from __future__ import annotations

from typing import Any

from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop


@LOOPS.register_module()
class TrainLoop(EpochBasedTrainLoop):
    """mmengine's loop by epochs; the first epoch may have been started by a stopped run.

    Args:
        *args: those of mmengine's loop.
        **kwargs: those of mmengine's loop.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches_done = 0
        """Batches of the next epoch that the stopped run has finished."""

    def run_epoch(self) -> None:
        """Run the rest of an epoch."""
        done, self.batches_done = self.batches_done, 0
        self.dataloader.batch_sampler.start_at(self.iter, done)
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for index, batch in enumerate(self.dataloader, done):
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
