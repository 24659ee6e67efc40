from __future__ import annotations

import pytest

from masa_vit.benchmark import Measurement
from masa_vit.benchmark.results import plot_ratios, print_table

SETTING = {'batch_size': 4, 'dtype': 'bf16', 'compile': True, 'checkpointing': True}


def test_the_picture_shows_every_ratio_with_its_range():
    rows = [
        Measurement('evaluation', 's', [2.0, 3.0, 4.0], [2.0, 2.0, 2.0], SETTING),
        Measurement('parameters', '', [3.0], [4.0]),
        Measurement('fold', 's', [1.0]),
    ]
    axes = plot_ratios(rows, 'a over b').axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ['evaluation', 'parameters']
    assert 'ratio' in axes.get_xlabel()
    assert axes.get_ylabel()
    drawn = {bars.get_label(): bars for bars in axes.containers}
    assert set(drawn) == {'batch 4, bf16, compiled, checkpointing', 'any setting'}
    points, _, (bars,) = drawn['batch 4, bf16, compiled, checkpointing']
    assert list(points.get_xdata()) == [1.5]
    assert [x for x, _ in bars.get_segments()[0]] == [1.0, 2.0]
    assert any(set(line.get_xdata()) == {1.0} for line in axes.lines if len(line.get_xdata()) == 2)
    with pytest.raises(ValueError, match='no ratios'):
        plot_ratios(rows[2:], 'a over b')


def test_the_table_has_units(capsys):
    print_table(
        'title',
        [
            Measurement('slow', 's', [1.5] * 7, [3.0] * 7),
            Measurement('fast', 's', [0.0015], [0.003]),
            Measurement('bytes', 'bytes', [2.0**20], [2.0**22]),
            Measurement('count', '', [86_567_656.0], [999.0]),
        ],
    )
    lines = [' '.join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert 'slow 1.500 s 3.000 s 0.500 0.500-0.500 0.500-0.500' in lines
    assert 'fast 1.50 ms 3.00 ms 0.500' in lines
    assert 'bytes 1.00 MiB 4.00 MiB 0.250' in lines
    assert 'count 86.57 M 999 86654.310' in lines
