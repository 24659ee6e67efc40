"""Small models and reports of them."""

import pytest
import torch
from torch import nn

from masa_vit.analysis import compare, projection_weights, summarize
from masa_vit.inspection.report import Comparison, Report


@pytest.fixture(scope='session')
def noisy(small):
    """Create a small model whose matrices are noise: ``noisy(seed=1, num_atoms=3)``."""

    def create(name='vit_tiny_masa_s2', seed=0, **args):
        torch.manual_seed(seed)
        model = small(name, **args)
        for param in model.parameters():
            if param.dim() > 1:
                nn.init.normal_(param, std=0.1)
        return model.eval()

    return create


@pytest.fixture(scope='module')
def report(noisy):
    """Of two models that differ in S, compared."""
    weights = {
        'two': projection_weights(noisy()),
        'three': projection_weights(noisy(seed=1, num_atoms=3, residual_rank=1)),
    }
    comparison = Comparison('two', 'three', compare(weights['two'], weights['three']))
    return Report({name: summarize(each) for name, each in weights.items()}, [comparison])
