from __future__ import annotations

import pytest
import torch

from masa_vit.compression.accuracy import top1_accuracy


def test_top1_counts_its_images():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Identity()).train()
    model.register_parameter('p', torch.nn.Parameter(torch.zeros(1)))
    images = torch.eye(4).view(4, 1, 2, 2)
    batches = [(images[:3], torch.tensor([0, 1, 0])), (images[3:], torch.tensor([3]))]
    assert top1_accuracy(model, batches) == (75.0, 4)
    assert model.training
    with pytest.raises(ValueError, match='no images'):
        top1_accuracy(model, [])
