from __future__ import annotations

import torch

from masa_vit.benchmark.timing import Stopwatch, time_alone, time_pairs, timed


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
    (row,) = time_alone(timed('x', lambda: calls.append(None), torch.device('cpu')), 3)
    assert len(calls) == 1 + 3
    assert len(row.model) == 3
    assert row.against is None


def test_laps_add_up(monkeypatch):
    ticks = iter([10.0, 10.5, 12.0])
    monkeypatch.setattr('masa_vit.benchmark.timing.time.perf_counter', lambda: next(ticks))
    watch = Stopwatch(torch.device('cpu'))
    watch.lap()
    watch.lap()
    assert watch.seconds() == [0.5, 1.5]
