"""A table of runs, with the digits of scikit-learn."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from masa_vit.cli import main
from masa_vit.training.run_table import OUTPUT, load_table, select

TABLE = """
base = 'masa_vit::cls/vit_tiny_masa_s4_digits.py'
seeds = [0, 1]
reference = 'dense'
_size = dict(depth=2, embed_dim=32)
_plain = dict(_delete_=True, img_size=16, patch_size=4, num_heads=4)
_short = dict(train_cfg=dict(max_epochs={epochs}))
rows = {{
    'dense': dict(
        model=dict(model_name='vit_tiny_patch16_224', model_args=dict(**_plain, **_size)),
        **_short,
    ),
    'masa': dict(model=dict(model_args=dict(_size, num_atoms=1)), **_short),
    'low-rank': dict(
        model=dict(model_args=dict(_size, scheme='low-rank')),
        match=dict(
            vary='model.model_args.residual_rank', among=[4, 6, 8, 10], to='masa', count='attention'
        ),
        seeds=[0],
        **_short,
    ),
}}
"""


@pytest.fixture
def write(tmp_path):
    def write(old: str = '', new: str = '', epochs: int = 1) -> Path:
        text = TABLE.format(epochs=epochs)
        assert old in text
        path = tmp_path / 'table.py'
        path.write_text(text.replace(old, new, 1) if old else text)
        return path

    return write


def test_rows_and_matched_budgets(write, tmp_path):
    table = load_table(write())
    rows = {row.name: row for row in table.rows}
    assert [*rows] == ['dense', 'masa', 'low-rank']
    assert rows['masa'].parameters.attention == 4 * 32 * 32 + 8
    assert rows['dense'].parameters.attention == 8 * 32 * 32
    # 8 weights of rank r: 8 * 2 * 32 * r; r=8 has 4,096 numbers for 4,104
    assert rows['low-rank'].config.model.model_args.residual_rank == 8
    assert rows['low-rank'].match == 'residual_rank=8: -0.2% of masa (attention parameters)'
    runs = [(run.row.name, run.seed) for run in table.runs(tmp_path)]
    assert runs == [('dense', 0), ('masa', 0), ('low-rank', 0), ('dense', 1), ('masa', 1)]


def test_selected_runs(write, tmp_path, capsys):
    runs = load_table(write()).runs(tmp_path)
    found = [(run.row.name, run.seed) for run in select(runs, ['masa', 'low-rank'], [0])]
    assert found == [('masa', 0), ('low-rank', 0)]
    assert select(runs, None, None) == runs
    assert main(['compare', str(write()), '--seeds', '7']) == 1
    assert 'the table has no [7], its seeds are [0, 1]' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ("reference = 'dense'", "reference = 'none'", r"reference='none' is not a row"),
        ('seeds = [0, 1]', 'seed = 0', r"has \[.*'seed'\], expected base, rows, seeds"),
        ("to='masa'", "to='low-rank'", "row 'low-rank': match: 'low-rank' is not a row"),
        ("count='attention'", "count='all'", "row 'low-rank': match=.*count: total or attention"),
        ("scheme='low-rank'", "scheme='lowrank'", "row 'low-rank': scheme='lowrank' is unknown"),
        ("'masa': dict(model=", "'masa': dict(modle=", "row 'masa': .*no key 'modle'"),
        ('vit_tiny_masa_s4_digits', 'no_such', r"row 'dense': config .* does not exist"),
    ],
)
def test_mistakes_are_found_before_the_first_run(write, old, new, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_table(write(old, new))


@pytest.mark.slow
def test_runs_continue_and_are_reported(write, tmp_path, capsys):
    path, out = write(), tmp_path / 'out'
    assert main(['compare', str(path), '--work-dir', str(out), '--jobs', '2']) == 0
    assert 'low-rank: residual_rank=8: -0.2% of masa' in capsys.readouterr().out
    times = {file: file.stat().st_mtime_ns for file in out.rglob('epoch_1.pth')}
    assert len(times) == 5
    record = json.loads((out / 'table.json').read_text())
    masa = next(row for row in record['rows'] if row['name'] == 'masa')
    summaries = [json.loads(p.read_text()) for p in sorted((out / 'masa').rglob('summary.json'))]
    values = [summary['metrics']['accuracy/nll']['last'] for summary in summaries]
    assert [*masa['metrics']['accuracy/nll']['values'].values()] == values
    assert summaries[0]['seed'] == 0
    assert summaries[1]['seed'] == 1
    with (out / 'table.csv').open() as file:
        lines = [*csv.DictReader(file)]
    assert [(line['row'], line['seed']) for line in lines] == [
        ('dense', '0'), ('dense', '1'), ('masa', '0'), ('masa', '1'), ('low-rank', '0'),
    ]  # fmt: skip
    assert (out / 'table.png').stat().st_size > 1000
    assert lines[0]['step_time'] == ''  # the reference
    assert float(lines[2]['step_time']) > 0.2
    assert float(lines[2]['peak_memory']) > 0.2
    measured = (out / 'costs.json').stat().st_mtime_ns
    assert '| masa | 2 |' in (out / 'table.md').read_text()

    # finished runs are not repeated, lost ones are
    lost = out / 'masa' / 'seed1'
    for file in lost.rglob('*'):
        if file.is_file():
            file.unlink()
    assert main(['compare', str(path), '--work-dir', str(out)]) == 0
    again = {file: file.stat().st_mtime_ns for file in out.rglob('epoch_1.pth')}
    assert {file for file in times if again[file] != times[file]} == {*lost.rglob('epoch_1.pth')}
    assert (out / 'costs.json').stat().st_mtime_ns == measured
    rows = json.loads((out / 'table.json').read_text())['rows']
    for row, before in zip(rows, record['rows'], strict=True):
        nll, expected = (r['metrics']['accuracy/nll']['values'] for r in (row, before))
        assert nll == pytest.approx(expected, rel=1e-5)

    # another recipe under the same name
    other = write('embed_dim=32)', 'embed_dim=64)')
    assert main(['compare', str(other), '--work-dir', str(out)]) == 1
    assert 'holds a run of another recipe (model differs)' in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_table_continues(write, tmp_path):
    path, out = write(epochs=12), tmp_path / 'out'
    command = [sys.executable, '-m', 'masa_vit.cli', 'compare', str(path), '--work-dir', str(out)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, env={**os.environ, 'OMP_NUM_THREADS': '1'}
    )
    summary = out / 'dense' / 'seed0' / 'summary.json'
    while not summary.is_file():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert b'The same command continues' in process.stderr.read()
    assert not json.loads(summary.read_text())['finished']
    assert not (out / 'masa').exists()
    short = write('seeds = [0, 1]', 'seeds = [0]', epochs=12)
    assert main(['compare', str(short), '--work-dir', str(out), '--jobs', '2']) == 0
    assert json.loads(summary.read_text())['finished']
    assert 'esumed' in (summary.parent / OUTPUT).read_text()


@pytest.mark.slow
def test_a_failed_run_is_named_and_the_others_go_on(write, tmp_path, capsys):
    path = write("'masa': dict(", "'masa': dict(load_from='none.pth', ")
    assert main(['compare', str(path), '--work-dir', str(tmp_path / 'out'), '--jobs', '2']) == 1
    error = capsys.readouterr().err
    assert 'masa, seed 0 failed' in error
    assert "'none.pth' does not exist" in error
    rows = json.loads((tmp_path / 'out' / 'table.json').read_text())['rows']
    assert [row['seeds'] for row in rows] == [[0, 1], [], [0]]
