from __future__ import annotations

import json

import pytest

from masa_vit.benchmark.timing import (
    Measurement,
    median_interval,
    time_alone,
    time_pairs,
    timed,
)


def test_pairs_are_alternated_after_the_warm_up():
    order: list[str] = []

    def call(name):
        def run():
            order.append(name)
            return {'all': float(len(order)), 'part': 1.0}

        return run

    whole, part = time_pairs(call('A'), call('B'), pairs=3, warm_up=2)
    assert ''.join(order) == 'ABAB' + 'ABBAAB'
    assert whole.what == 'all'
    assert whole.model == [5.0, 8.0, 9.0]
    assert whole.against == [6.0, 7.0, 10.0]
    assert whole.ratios == [5 / 6, 8 / 7, 9 / 10]
    assert part.ratios == [1.0, 1.0, 1.0]


def test_alone_runs_as_often_as_told():
    calls: list[None] = []
    (row,) = time_alone(timed('x', lambda: calls.append(None)), 3)
    assert len(calls) == 1 + 3
    assert len(row.model) == 3
    assert row.against is None


def test_ratios_are_paired():
    row = Measurement('x', 's', [1.0, 4.0, 9.0], [1.0, 2.0, 3.0], {'batch_size': 4})
    assert row.ratios == [1.0, 2.0, 3.0]
    assert row.ratio == 2.0
    record = json.loads(json.dumps(row.to_json()))
    assert record['batch_size'] == 4
    assert (record['model'], record['against'], record['ratio']) == (4.0, 2.0, 2.0)
    assert record['values'] == {'model': [1.0, 4.0, 9.0], 'against': [1.0, 2.0, 3.0]}


def test_without_a_counterpart_there_is_no_ratio():
    row = Measurement('fold', 's', [1.0, 3.0])
    assert row.ratios == []
    assert row.ratio is None
    assert row.interval is None
    assert row.to_json()['against'] is None


def test_runs_without_a_partner_are_refused():
    with pytest.raises(ValueError, match='shorter'):
        Measurement('x', 's', [1.0, 2.0], [1.0]).ratios  # noqa: B018


@pytest.mark.parametrize(
    ('count', 'ranks'),
    [(5, None), (6, (1, 6)), (7, (1, 7)), (9, (2, 8)), (15, (4, 12)), (20, (6, 15))],
)
def test_interval_has_the_ranks_of_the_sign_test(count, ranks):
    """The ranks are those of the usual tables for 95 %."""
    values = [float(value) for value in range(count, 0, -1)]
    assert median_interval(values) == ranks
