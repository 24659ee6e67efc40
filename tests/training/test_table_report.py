from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from mmengine.config import Config

from masa_vit.inspection.parameter_counts import ParameterCounts
from masa_vit.training.run_table import Row, Run, RunTable
from masa_vit.training.table_report import markdown, report, seeds_sentence

NLL, TOP1 = 'accuracy/nll', 'accuracy/top1'
CONFIG = Config(
    {
        'model': {
            'model_name': 'vit_tiny_patch16_224',
            'num_classes': 10,
            'model_args': {'img_size': 32, 'patch_size': 8, 'embed_dim': 48, 'depth': 2},
        }
    }
)
VALUES = {'dense': [60.0, 62.0, 61.0], 'masa': [59.0, 61.5, 60.0], 'new': [70.0, 72.0, 71.2]}


@pytest.fixture
def table():
    counts = ParameterCounts(100, 1000, 100, 1000, False)
    rows = tuple(Row(name, CONFIG, (0, 1, 2), counts) for name in VALUES)
    return RunTable(rows, 'dense', (NLL, TOP1), {TOP1: 2.0})


@pytest.fixture
def runs(table, tmp_path):
    runs = table.runs(tmp_path)
    for run in runs:
        run.folder.mkdir(parents=True)
        top1 = VALUES[run.row.name][run.seed]
        metrics = {NLL: {'last': 2 - top1 / 100}, TOP1: {'last': top1}}
        summary = {'finished': True, 'metrics': metrics, 'commit': 'abc', 'epoch': 1}
        (run.folder / 'summary.json').write_text(json.dumps(summary))
    return runs


def test_records(table, runs):
    dense, masa, new = report(table, runs, {})
    assert dense['metrics'][TOP1]['mean'] == 61
    assert dense['metrics'][TOP1]['spread'] == 1
    assert 'difference' not in dense['metrics'][TOP1]
    found = masa['metrics'][TOP1]
    assert found['difference'] == pytest.approx(-2.5 / 3)
    half = 4.302653 * math.sqrt(1 / 12) / math.sqrt(3)  # t of 2 degrees of freedom
    assert found['high'] == pytest.approx(-2.5 / 3 + half, abs=1e-5)
    assert found['verdict'] == 'equal'
    assert new['metrics'][TOP1]['verdict'] == 'higher'
    assert new['metrics'][NLL]['verdict'] == 'lower'
    assert dense['gflops'] > 0


def test_unfinished_runs_do_not_count(table, runs):
    path = runs[-1].folder / 'summary.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'finished': False}))
    record = report(table, runs, {})[-1]
    assert record['seeds'] == [0, 1]
    assert [*record['metrics'][TOP1]['values']] == [0, 1]


def test_text(table, runs):
    records = report(table, runs, {})
    text = markdown(table, records)
    assert '| masa | 3 |' in text
    assert '-0.833 [-1.6, -0.12]' in text
    assert 'difference of 1 needs' in text
    assert 'commits: abc' in text
    assert 'Two seeds or more' in seeds_sentence(records[:1], TOP1)
    alone = replace(table, rows=table.rows[:1])
    assert (
        markdown(alone, report(alone, [r for r in runs if r.row.name == 'dense'], {})).count('\n')
        > 3
    )


def test_a_run_reads_its_summary(runs, tmp_path):
    assert Run(runs[0].row, 5, tmp_path / 'none').summary() == {}
