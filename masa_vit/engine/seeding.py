"""Randomness that a resumed run repeats: a function of (seed, rank, epoch), not of history.

Nothing is saved: every epoch starts from states derived from its number, so that it draws the
same numbers whether the process has run since epoch 0 or was started a moment ago. This covers
the order of the data, the workers that load it (persistent or not) and all that the model draws
(drop path, mixup). Code that keeps a generator of its own is not covered.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS
from torch.utils.data import Dataset, get_worker_info


def seed_everything(*key: int) -> None:
    """Seed python, numpy and torch (every device) from a tuple of non-negative integers."""
    words = np.random.SeedSequence(key).generate_state(3, np.uint32)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


class SeededDataset(Dataset):
    """A dataset whose loader workers are seeded anew in every epoch.

    torch seeds a worker when it starts; a persistent worker starts once, so after a resume it
    would repeat epoch 0. Here a worker seeds itself from (seed, rank, epoch, worker) at the
    first sample of an epoch. In the main process (`num_workers=0`) nothing is done. Everything
    else is the wrapped dataset's.

    Args:
        dataset: any map-style dataset, or its config.
        seed: the run's seed.
        rank: the process's rank.
    """

    def __init__(self, dataset: Any, seed: int, rank: int) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self._key = (seed, rank)
        # shared memory: reaches workers that already run
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._seeded_epoch: int | None = None

    def set_worker_epoch(self, epoch: int) -> None:
        """Tell the workers the number of the epoch (or the iteration that training starts at)."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        if worker is not None:
            epoch = int(self._epoch)
            if epoch != self._seeded_epoch:
                self._seeded_epoch = epoch
                seed_everything(*self._key, epoch, 1 + worker.id)
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def __setattr__(self, name: str, value: Any) -> None:
        # as reading: mmdet's PipelineSwitchHook replaces the `pipeline` of the loader's dataset
        if name == 'dataset' or name.startswith('_'):
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)

    def __getattr__(self, name: str) -> Any:
        # `dataset` is missing while unpickling; batched fetching would pass by __getitem__
        if name in ('dataset', '__getitems__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)
