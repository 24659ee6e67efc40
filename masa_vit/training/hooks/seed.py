"""Seeds every epoch and every iteration by its number."""

from __future__ import annotations

from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from masa_vit.training.seeding import seed_everything


@HOOKS.register_module()
class SeedHook(Hook):
    """Makes the random numbers of the main process a function of (seed, rank, iteration).

    Before an epoch they are seeded by its number, for samplers that draw from them.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Any) -> None:
        """Seed the epoch, before its loader starts."""
        seed_everything(runner.seed, get_rank(), runner.epoch)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the iteration, after its batch was loaded."""
        seed_everything(runner.seed, get_rank(), runner.epoch, runner.iter)
