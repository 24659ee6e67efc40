"""Random numbers are a function of seed, rank, batch and index."""

import functools
import multiprocessing
import pickle
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader, Dataset

from masa_vit.training.seeding import (
    NumberedBatches,
    SeededDataset,
    init_worker,
    number_batches,
    seed_everything,
)


class Draws(Dataset):
    flavour = 'sweet'

    def __len__(self):
        return 8

    def __getitem__(self, index):
        draws = [random.random(), np.random.rand(), torch.rand(()).item()]
        return torch.tensor([index, *draws], dtype=torch.float64)


def batches(size=2, **config):
    return NumberedBatches(DefaultSampler(Draws(), seed=0), size, **config)


def epochs(starts=((0, 0), (4, 0)), seed=0, rank=0, **loader):
    """The samples of one epoch for each (number of its first batch, its place in the epoch)."""
    sampler = batches()
    data = DataLoader(SeededDataset(Draws(), seed, rank), batch_sampler=sampler, **loader)
    result = []
    for start in starts:
        sampler.start_at(*start)
        result.append(torch.cat(list(data)))
    return result


def test_seed_everything():
    def triple(*key):
        seed_everything(*key)
        return random.random(), np.random.rand(), torch.rand(()).item()

    assert triple(1, 2, 3) == triple(1, 2, 3)
    assert all(a != b for a, b in zip(triple(1, 2, 3), triple(1, 3, 2), strict=True))


def test_samples_repeat_with_any_number_of_workers_and_differ_otherwise():
    first, second = epochs()
    assert len(torch.unique(torch.cat([first, second])[:, 1:])) == 2 * 8 * 3  # no number twice
    for loader in (
        dict(num_workers=1),
        dict(num_workers=2, persistent_workers=True, prefetch_factor=4),
    ):
        assert torch.equal(torch.stack(epochs(**loader)), torch.stack([first, second]))
    assert not torch.equal(epochs(rank=1)[0], first)
    assert not torch.equal(epochs(seed=1)[0], first)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_an_epoch_goes_on_from_its_middle(num_workers):
    first, second = epochs()
    rest, after = epochs(starts=((3, 3), (4, 0)), num_workers=num_workers)
    assert torch.equal(rest, first[6:])
    assert torch.equal(after, second)
    assert epochs(starts=((4, 3), (4, 0)))[0].shape == (2, 4)  # the last batch alone


def test_indices_of_a_batch():
    sampler = batches(size=3)
    sampler.start_at(10, 0)
    numbered = list(sampler)
    assert [[number for number, _ in batch] for batch in numbered] == [[10] * 3, [11] * 3, [12] * 2]
    assert sampler.indices_of(11) == [index for _, index in numbered[1]]
    assert sampler.indices_of(9) == ()
    assert len(sampler) == 3
    assert len(batches(size=3, drop_last=True)) == 2


def test_a_batch_sampler_of_the_config_is_kept():
    config = number_batches(
        dict(dataset=Draws(), batch_sampler=dict(type='Other'), batch_size=4), seed=0, rank=0
    )
    assert config['batch_sampler'] == dict(
        type=NumberedBatches, batches=dict(type='Other'), drop_last=False
    )
    assert number_batches(dict(dataset=Draws(), drop_last=True), 0, 0)['batch_size'] == 1


def test_the_dataset_shows_through():
    dataset = SeededDataset(Draws(), 0, 0)
    assert dataset[5, 3][0] == 3
    assert torch.equal(dataset[5, 3], dataset[5, 3])
    assert not torch.equal(dataset[5, 3], dataset[6, 3])
    assert len(dataset) == 8
    assert dataset.flavour == 'sweet'
    assert not hasattr(dataset, 'bitter')
    assert pickle.loads(pickle.dumps(dataset)).flavour == 'sweet'


def test_the_pipeline_of_the_wrapped_dataset_can_be_replaced():
    """mmdet's PipelineSwitchHook does it to the loader's dataset."""

    class Data(torch.utils.data.Dataset):
        pipeline = 'first'

    data = Data()
    seeded = SeededDataset(data, seed=0, rank=0)
    seeded.pipeline = 'second'
    assert data.pipeline == 'second' == seeded.pipeline


class Slow(Draws):
    def __getitem__(self, index):
        time.sleep(0.2)
        return super().__getitem__(index)


@pytest.mark.skipif(not hasattr(signal, 'sigwaitinfo'), reason='the system has no sigwaitinfo')
def test_workers_ignore_signals_to_their_group_and_end_with_the_main_process():
    start = functools.partial(init_worker, num_workers=2, rank=0, seed=0)
    loader = iter(DataLoader(Slow(), batch_size=2, num_workers=2, worker_init_fn=start))
    next(loader)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    stranger = 'import os, signal, sys; [os.kill(int(p), signal.SIGTERM) for p in sys.argv[1:]]'
    subprocess.run([sys.executable, '-c', stranger, *(str(w.pid) for w in workers)], check=True)
    assert len(list(loader)) == 3
    for worker in workers:
        worker.terminate()
        worker.join(timeout=10)
        assert worker.exitcode == 0
