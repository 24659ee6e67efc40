"""Random numbers are a function of seed, rank, epoch and worker."""

import pickle
import random

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from masa_vit.engine.seeding import SeededDataset, seed_everything


class Draws(Dataset):
    flavour = 'sweet'

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])


def draws(seed=0, rank=0, epochs=(0, 1), **loader):
    dataset = SeededDataset(Draws(), seed, rank)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, **loader)
    result = []
    for epoch in epochs:
        dataset.set_worker_epoch(epoch)
        result.append(torch.cat(list(loader)))
    return result


def test_seed_everything():
    def triple(*key):
        seed_everything(*key)
        return random.random(), np.random.rand(), torch.rand(()).item()

    assert triple(1, 2, 3) == triple(1, 2, 3)
    assert all(a != b for a, b in zip(triple(1, 2, 3), triple(1, 3, 2), strict=True))


def test_workers_repeat_an_epoch_and_differ_otherwise():
    first, second = draws()
    assert len(torch.unique(torch.cat([first, second]))) == 2 * 8 * 3  # no number twice
    persistent = draws(persistent_workers=True)
    assert torch.equal(torch.stack(persistent), torch.stack([first, second]))
    assert torch.equal(draws(epochs=[1], persistent_workers=True)[0], second)
    assert not torch.equal(draws(rank=1)[0], first)
    assert not torch.equal(draws(seed=1)[0], first)


def test_main_process_is_left_alone_and_the_dataset_shows_through():
    dataset = SeededDataset(Draws(), 0, 0)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    assert torch.allclose(torch.stack([dataset[0][2], dataset[1][2]]), expected)
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
