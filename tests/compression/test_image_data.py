from __future__ import annotations

import pytest
import torch
from torch import nn

from masa_vit.compression.image_data import top1_accuracy


@pytest.fixture
def model() -> nn.Module:
    """The class is the brightest pixel. In training mode, but for one frozen module."""
    model = nn.Sequential(nn.Flatten(), nn.Identity()).train()
    model.register_parameter('p', nn.Parameter(torch.zeros(1)))
    model[1].eval()
    return model


def test_top1_counts_its_images(model):
    images = torch.eye(4).view(4, 1, 2, 2)
    batches = [(images[:3], torch.tensor([0, 1, 0])), (images[3:], torch.tensor([3]))]
    assert top1_accuracy(model, batches) == (75.0, 4)
    with pytest.raises(ValueError, match='no images'):
        top1_accuracy(model, [])


@pytest.mark.parametrize('fails', [False, True])
def test_top1_restores_the_mode_of_every_module(model, fails):
    def batches():
        assert not any(module.training for module in model.modules())
        yield torch.ones(1, 1, 2, 2), torch.tensor([0])
        if fails:
            raise OSError('a broken image')

    if fails:
        with pytest.raises(OSError, match='a broken image'):
            top1_accuracy(model, batches())
    else:
        top1_accuracy(model, batches())
    assert [module.training for module in model.modules()] == [True, True, False]
