from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from masa_vit.training.run_statistics import mean_and_spread, paired_difference, seeds_needed


def test_the_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = (dict(enumerate(rng.normal(size=7))) for _ in range(2))
    found = paired_difference(a, b)
    expected = stats.ttest_rel([*a.values()], [*b.values()]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.num_seeds == 7
    assert mean_and_spread(a) == pytest.approx(
        (np.mean([*a.values()]), np.std([*a.values()], ddof=1))
    )


def test_only_common_seeds_are_paired():
    found = paired_difference({0: 5.0, 1: 7.0, 2: 9.0}, {1: 6.0, 2: 7.0, 9: 0.0})
    assert (found.num_seeds, found.mean) == (2, 1.5)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    one = paired_difference({0: 1.0}, {0: 3.0})
    assert (one.mean, one.low, one.high) == (-2.0, -math.inf, math.inf)
    assert one.verdict(10) == 'not resolved'


@pytest.mark.parametrize(
    ('values', 'bound', 'verdict'),
    [
        ([2.0, 2.1, 1.9], None, 'higher'),
        ([-2.0, -2.1, -1.9], None, 'lower'),
        ([2.0, -2.1, 1.9], 1.0, 'not resolved'),
        ([0.1, -0.1, 0.05], 1.0, 'equal'),
    ],
)
def test_verdicts(values, bound, verdict):
    found = paired_difference(dict(enumerate(values)), dict.fromkeys(range(3), 0.0))
    assert found.verdict(bound) == verdict


def test_seeds_needed_have_the_power_that_is_asked_for():
    rng = np.random.default_rng(0)
    number = seeds_needed(spread=1.65, difference=1.0)
    assert number == 24
    samples = rng.normal(1.0, 1.65, (4000, number))
    p = stats.ttest_1samp(samples, 0, axis=1).pvalue
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.03)
    assert seeds_needed(0.0) == 2
