"""Seeds every epoch by its number."""

from __future__ import annotations

from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop

from masa_vit.engine.seeding import seed_everything


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Makes the random numbers of an epoch a function of (seed, rank, epoch).

    In loops by iterations the main process is seeded at every iteration instead; loader workers
    are seeded at the start only, so there a resumed run is exact with `num_workers=0` alone.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Any) -> None:
        """Seed a loop by iterations where it starts."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._seed(runner, runner.iter)

    def before_train_epoch(self, runner: Any) -> None:
        """Seed the epoch, before its loader starts."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._seed(runner, runner.epoch)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Seed the next iteration of a loop by iterations."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            seed_everything(runner.seed, get_rank(), runner.iter + 1, 0)

    def after_val(self, runner: Any) -> None:
        """Undo what validation inside a loop by iterations has drawn."""
        training = isinstance(runner._train_loop, BaseLoop)
        if training and not isinstance(runner._train_loop, EpochBasedTrainLoop):
            seed_everything(runner.seed, get_rank(), runner.iter, 0)

    def _seed(self, runner: Any, step: int) -> None:
        seed_everything(runner.seed, get_rank(), step, 0)
        dataset = runner.train_dataloader.dataset
        if hasattr(dataset, 'set_worker_epoch'):
            dataset.set_worker_epoch(step)
