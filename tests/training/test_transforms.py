from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmengine.dataset.utils import worker_init_fn
from mmengine.registry import TRANSFORMS
from PIL import Image
from torch.utils.data import DataLoader

from masa_vit.training import ImageDataset

PIPELINES = {
    'albumentations': dict(
        type='Albumentations',
        transforms=[
            dict(type='RandomResizedCrop', size=(16, 16), scale=(0.2, 1.0)),
            dict(type='OneOf', transforms=[dict(type='HorizontalFlip'), dict(type='GaussNoise')]),
        ],
    ),
    'torchvision': dict(
        type='TorchvisionTransform',
        transforms=[
            dict(type='RandomCrop', size=16, padding=4),
            dict(type='RandomHorizontalFlip'),
            dict(type='Resize', size=16, interpolation='bicubic'),
        ],
    ),
    'timm': dict(
        type='TimmTransform',
        input_size=16,
        is_training=True,
        auto_augment='rand-m9-mstd0.5-inc1',
        re_prob=0.25,
    ),
}


class Noise(ImageDataset):
    """One and the same image, so that samples differ by augmentation only."""

    def __init__(self, pipeline: list, length: int = 24):
        super().__init__(['a', 'b'], [0] * length, pipeline)
        self.image = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)

    def load(self, index: int) -> np.ndarray:
        return self.image.copy()


def seed(value: int) -> None:
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def batches(cfg: dict, value: int, workers: int, epochs: int = 1) -> torch.Tensor:
    """All samples of some epochs, loaded as mmengine's Runner loads them."""
    seed(value)
    init = partial(worker_init_fn, num_workers=workers, rank=0, seed=value)
    loader = DataLoader(
        Noise([cfg]),
        batch_size=6,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=default_collate,
        worker_init_fn=init,
    )
    return torch.stack([torch.cat([b['inputs'] for b in loader]) for _ in range(epochs)])


@pytest.mark.parametrize('name', PIPELINES)
def test_gives_a_chw_tensor(name: str) -> None:
    sample = Noise([PIPELINES[name]])[0]
    assert sample['inputs'].shape == (3, 16, 16)
    assert sample['inputs'].dtype == (torch.float32 if name == 'timm' else torch.uint8)
    assert sample['targets'] == 0


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('name', PIPELINES)
def test_same_seed_same_batches(name: str, workers: int) -> None:
    cfg = PIPELINES[name]
    first = batches(cfg, 3, workers, epochs=2)  # (2 epochs, 24, 3, 16, 16)
    assert torch.equal(first, batches(cfg, 3, workers, epochs=2))
    assert not torch.equal(first, batches(cfg, 4, workers, epochs=2))
    assert not torch.equal(first[0], first[1]), 'the second epoch repeats the first'
    # with two workers, batches 0 and 1 come from different ones
    assert not torch.equal(first[0, :6], first[0, 6:12]), 'two workers draw the same numbers'


def test_albumentations_follows_a_restored_generator() -> None:
    transform = TRANSFORMS.build(PIPELINES['albumentations'])
    image = Noise([]).image
    seed(0)
    transform({'inputs': image})
    states = random.getstate(), np.random.get_state()
    expected = transform({'inputs': image})['inputs']
    transform({'inputs': image})
    random.setstate(states[0])
    np.random.set_state(states[1])
    assert np.array_equal(transform({'inputs': image})['inputs'], expected)


def test_transforms_of_different_libraries_chain() -> None:
    sample = Noise([PIPELINES['torchvision'], PIPELINES['albumentations'], PIPELINES['timm']])[0]
    assert sample['inputs'].shape == (3, 16, 16)


@pytest.mark.parametrize('kind', ['Albumentations', 'TorchvisionTransform'])
def test_unknown_name(kind: str) -> None:
    names = dict(
        Albumentations=('HorizontalFlop', 'HorizontalFlip'),
        TorchvisionTransform=('RandomCorp', 'RandomCrop'),
    )
    wrong, right = names[kind]
    with pytest.raises(ValueError, match=rf"no transform '{wrong}'.*{right}"):
        TRANSFORMS.build(dict(type=kind, transforms=[dict(type=wrong)]))


@pytest.mark.parametrize('kind', ['Albumentations', 'TorchvisionTransform'])
def test_unknown_argument(kind: str) -> None:
    name = 'HorizontalFlip' if kind == 'Albumentations' else 'RandomHorizontalFlip'
    with pytest.raises(ValueError, match=rf'{name}.*probability'):
        TRANSFORMS.build(dict(type=kind, transforms=[dict(type=name, probability=0.5)]))
    with pytest.raises(ValueError, match=r'TimmTransform.*auto_agument'):
        TRANSFORMS.build(dict(type='TimmTransform', input_size=16, auto_agument='x'))


@pytest.mark.parametrize('transforms', [dict(type='HorizontalFlip'), ['HorizontalFlip'], [{}]])
def test_not_a_list_of_dicts(transforms: object) -> None:
    with pytest.raises(TypeError, match='dict\\(type=NAME'):
        TRANSFORMS.build(dict(type='Albumentations', transforms=transforms))


def test_the_strongest_posterization_of_randaugment_is_black():
    """Level 10 keeps 0 bits; Pillow refused that in training, now and then."""
    transform = TRANSFORMS.build(
        dict(type='TimmTransform', input_size=8, is_training=True, auto_augment='rand-m10-inc1')
    )
    augment = next(step for step in transform.transform.transforms if hasattr(step, 'ops'))
    (op,) = (op for op in augment.ops if op.name == 'PosterizeIncreasing')
    op.prob = 1.0
    assert np.array(op(Image.fromarray(np.full((8, 8, 3), 200, np.uint8)))).max() == 0
