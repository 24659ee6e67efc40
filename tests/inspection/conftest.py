"""Reports of small models."""

import pytest

from masa_vit.inspection import compare, projection_weights, summarize
from masa_vit.inspection.report import Comparison, Report


@pytest.fixture(scope='module')
def report(noisy):
    """Of two models that differ in S, compared."""
    weights = {
        'two': projection_weights(noisy()),
        'three': projection_weights(noisy(seed=1, num_atoms=3, residual_rank=1)),
    }
    comparison = Comparison('two', 'three', compare(weights['two'], weights['three']))
    return Report({name: summarize(each) for name, each in weights.items()}, [comparison])
