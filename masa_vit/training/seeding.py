"""Generators seeded from (seed, rank, iteration), so that a resumed run repeats them.

No generator state is saved. Every sample is loaded with generators seeded from the seed, the rank, the
number of its batch since the start of training and its index; every iteration of the model with
generators seeded from the seed, the rank, the epoch and its number. So a run that stopped in the
middle of an epoch continues by skipping the batches that it has used, with any number of loader
workers. Code with a separate generator is not covered.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dataset import worker_init_fn as _mmengine_init
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import BatchSampler, Dataset, Sampler

Index = tuple[int, int]
"""The number of a batch since the start of training, and the index of a sample."""


def seed_everything(*key: int, cpu_only: bool = False) -> None:
    """Seed python, numpy and torch from a tuple of non-negative integers.

    Args:
        *key: The integers.
        cpu_only: Leave the generators of other devices unchanged: cheap enough for every sample.
    """
    words = np.random.SeedSequence(key).generate_state(3, np.uint32)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    (torch.default_generator.manual_seed if cpu_only else torch.manual_seed)(int(words[2]))


class SeededDataset(Dataset):
    """A dataset whose samples are drawn from generators seeded by (seed, rank, batch, index).

    `NumberedBatches` gives the pairs of batch and index. Everything else is the wrapped dataset's.

    Args:
        dataset: any map-style dataset, or its config.
        seed: the run's seed.
        rank: the process's rank.
    """

    def __init__(self, dataset: Any, seed: int, rank: int) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self._key = (seed, rank)

    def __getitem__(self, index: Index) -> Any:
        seed_everything(*self._key, *index, cpu_only=True)
        return self.dataset[index[1]]

    def __len__(self) -> int:
        return len(self.dataset)

    def __setattr__(self, name: str, value: Any) -> None:
        # as reading: mmdet's PipelineSwitchHook replaces the `pipeline` of the loader's dataset
        if name in ('dataset', '_key'):
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)

    def __getattr__(self, name: str) -> Any:
        # `dataset` is missing while unpickling; batched fetching would pass by __getitem__
        if name in ('dataset', '__getitems__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)


class NumberedBatches(Sampler):
    """A batch sampler whose indices carry the number of their batch since the start of training.

    Args:
        sampler: of the indices.
        batch_size: of the batches.
        batches: config of the batch sampler that groups the indices; by default torch's.
        drop_last: for torch's batch sampler.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        batches: dict[str, Any] | None = None,
        drop_last: bool = False,
    ) -> None:
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last
        config = batches or dict(type=BatchSampler, drop_last=drop_last)
        given = dict(sampler=sampler, batch_size=batch_size)
        self.batches = DATA_SAMPLERS.build(config, default_args=given)
        self.recent: deque[tuple[int, list[int]]] = deque(maxlen=256)
        self._number = self._skip = 0

    def start_at(self, number: int, batch: int) -> None:
        """Set the number of the next batch, and its place in the next epoch."""
        self._number, self._skip = number, batch

    def __iter__(self) -> Iterator[list[Index]]:
        skip, self._skip = self._skip, 0
        for place, indices in enumerate(self.batches):
            if place >= skip:
                self.recent.append((self._number, list(indices)))
                numbered = [(self._number, index) for index in indices]
                self._number += 1
                yield numbered

    def __len__(self) -> int:
        return len(self.batches)

    def indices_of(self, number: int) -> Sequence[int]:
        """Return the indices of a recent batch; empty if it is not known."""
        return next((indices for n, indices in self.recent if n == number), ())


def number_batches(config: dict[str, Any], seed: int, rank: int) -> dict[str, Any]:
    """The config of a train loader with `SeededDataset` and `NumberedBatches`."""
    config = {'batch_size': 1, **config}
    # as a config: mmengine makes a deep copy of an object
    config['dataset'] = dict(type=SeededDataset, dataset=config['dataset'], seed=seed, rank=rank)
    config['batch_sampler'] = dict(
        type=NumberedBatches,
        batches=config.pop('batch_sampler', None),
        drop_last=config.pop('drop_last', False),
    )
    return config


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


@HOOKS.register_module()
class SeedHook(Hook):
    """Seed the main process before every epoch by (seed, rank, epoch), before every iteration by
    (seed, rank, epoch, iteration).

    The seed of the epoch is for samplers that draw from the global generators.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Any) -> None:
        """Seed the epoch, before its loader starts."""
        seed_everything(runner.seed, get_rank(), runner.epoch)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the iteration, after its batch was loaded."""
        seed_everything(runner.seed, get_rank(), runner.epoch, runner.iter)


def init_worker(worker_id: int, **kwargs: Any) -> None:
    """Start a loader worker as mmengine does; only the main process may end it.

    Ctrl-C and cluster schedulers signal all processes of a group. The main process then finishes its
    step and saves, for which it needs the batches of its workers.
    """
    _mmengine_init(worker_id, **kwargs)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    """Exit at the SIGTERM that the main process sends; ignore those of others."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
