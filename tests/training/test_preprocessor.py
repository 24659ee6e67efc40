from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS

import masa_vit.training  # noqa: F401
from masa_vit.training.image_datasets import IGNORE_INDEX


def build(**kwargs):
    return MODELS.build(dict(type='ImagePreprocessor', **kwargs))


def test_uint8_is_normalised_and_float_is_not() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    targets = torch.tensor([0, 1])
    mean, std = [10.0, 20.0, 30.0], [2.0, 4.0, 8.0]
    out = build(mean=mean, std=std)({'inputs': images, 'targets': targets})
    shape = (1, 3, 1, 1)
    expected = (images.float() - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    assert torch.equal(out['inputs'], expected)
    assert torch.equal(out['targets'], targets)
    floats = torch.randn(2, 3, 4, 4)
    assert torch.equal(build()({'inputs': floats, 'targets': targets})['inputs'], floats)


def test_skipped_images_leave_a_training_batch_only() -> None:
    batch = {'inputs': torch.randn(3, 3, 4, 4), 'targets': torch.tensor([1, IGNORE_INDEX, 0])}
    train = build()(batch, training=True)
    assert torch.equal(train['inputs'], batch['inputs'][[0, 2]])
    assert train['targets'].tolist() == [1, 0]
    assert len(build()(batch)['inputs']) == 3
    nothing = {key: value[1:2] for key, value in batch.items()}
    left = build()(nothing, training=True)
    assert torch.equal(left['inputs'], nothing['inputs']), 'for the forward pass'
    assert left['targets'].shape == (0,)


def test_bad_statistics() -> None:
    with pytest.raises(ValueError, match='one value a channel'):
        build(mean=[1.0, 2.0, 3.0], std=[1.0])
    with pytest.raises(ValueError, match='std must be positive'):
        build(mean=[1.0], std=[0.0])
