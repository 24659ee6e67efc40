"""The GPU suite on tiny models on the CPU; tests/gpu runs it on a GPU."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from masa_vit.benchmark import gpu_suite, steps
from masa_vit.benchmark.gpu_suite import MODELS, Case, make_cases, print_results, run_cases
from masa_vit.benchmark.results import Report
from masa_vit.cli import benchmark as command
from masa_vit.cli import main

PARTS = ['training step', 'forward', 'backward', 'optimizer']
EVALUATIONS = ['evaluation', 'evaluation after fold']


@pytest.fixture
def report(tmp_path) -> Report:
    return Report({'device': 'cpu'}, tmp_path / 'suite.json')


def read(report: Report) -> dict:
    return json.loads(report.path.read_text())


def run(*options: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(['--suite', 'gpu', *options]))


def test_every_case_is_measured(spec, report, monkeypatch, capsys):
    monkeypatch.setattr(torch, 'compile', lambda model: model)
    kinds = [('training', False), ('evaluation', False), ('evaluation', True)]
    run_cases([Case(what, spec(), compiled) for what, compiled in kinds], report, pair_seconds=0)
    rows = read(report)['results']
    assert [row['what'] for row in rows] == [*PARTS, *EVALUATIONS, 'evaluation']
    assert [row['compile'] for row in rows] == [False] * 6 + [True]
    for row in rows:
        assert (row['name'], row['batch_size'], row['dtype']) == ('vit_tiny_masa_s2', 2, 'bf16')
        assert len(row['ratios']) == 3
    assert {'device', 'torch', 'timm', 'masa_vit'} <= set(read(report)['machine'])
    print_results(report)
    out = capsys.readouterr().out
    assert 'vit_tiny_masa_s2 over vit_tiny_patch16_224' in out
    assert out.count('training step, 2') == out.count('evaluation after fold, 2') == 1
    assert 'forward' not in out
    assert out.count('bf16, compiled') == 2, 'progress and table'


def test_the_pairs_fill_their_time(spec, report):
    run_cases([Case('evaluation', spec(), False)], report, pair_seconds=1.0)
    assert [len(row.ratios) for row in report.measurements] == [21, 21]


def test_a_case_without_memory_is_noted(spec, report, monkeypatch):
    fail = [True, False]
    evaluation = steps.evaluation

    def build(*args):
        if fail.pop(0):
            raise torch.OutOfMemoryError('CUDA out of memory.\nTried to allocate 20 GiB')
        fail.append(False)
        return evaluation(*args)

    monkeypatch.setattr(steps, 'evaluation', build)
    cases = [Case('evaluation', spec(batch_size=size), False) for size in (4, 2)]
    run_cases(cases, report, pair_seconds=0)
    name = 'evaluation of vit_tiny_masa_s2, batch 4, bf16'
    assert read(report)['notes'] == [f'{name}: out of memory. CUDA out of memory.']
    assert [row['batch_size'] for row in read(report)['results']] == [2, 2]


def test_cases_for_which_no_time_is_left_are_noted(spec, report, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gpu_suite.time, 'monotonic', lambda: now[0])

    def measure(case, pair_seconds):
        now[0] += 40.0
        return iter(())

    monkeypatch.setitem(gpu_suite.MEASURES, 'training', measure)
    names = ['vit_base_masa_s2', 'vit_large_masa_s2', 'vit_base_masa_s2', 'vit_base_masa_s2']
    run_cases([Case('training', spec(name), False) for name in names], report, seconds=110)
    notes = read(report)['notes']
    assert [note.partition(':')[0] for note in notes] == [
        'training of vit_large_masa_s2, batch 2, bf16',  # may take 80 s
        'training of vit_base_masa_s2, batch 2, bf16',  # 40 s, for the third time
    ]
    assert '80 s do not fit into 110 s' in notes[0]
    assert now[0] == 80.0


def test_a_run_that_breaks_leaves_what_was_measured(spec, report, monkeypatch):
    monkeypatch.setattr(steps, 'evaluation', lambda *args: 1 / 0)
    cases = [Case(what, spec(), False) for what in ('training', 'evaluation')]
    with pytest.raises(ZeroDivisionError):
        run_cases(cases, report, pair_seconds=0)
    assert [row['what'] for row in read(report)['results']] == PARTS


def test_without_a_compiler_the_eager_cases_remain(spec, report, monkeypatch):
    def fail(device):
        raise ValueError('no compiler')

    monkeypatch.setattr(gpu_suite, 'check_compile', fail)
    run_cases([Case('evaluation', spec(), c) for c in (True, False)], report, pair_seconds=0)
    assert read(report)['notes'] == ['no compiled cases: no compiler']
    assert [row['compile'] for row in read(report)['results']] == [False, False]


def test_the_cases():
    cases = make_cases(MODELS, 'cuda')
    assert len(cases) == len(set(map(str, cases))) == 24
    assert [case.compiled for case in cases] == [False] * 12 + [True] * 12
    assert {case.spec.device for case in cases} == {'cuda'}


def test_no_gpu_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert main(['benchmark', '--suite', 'gpu', '--out', str(tmp_path / 'x.json')]) == 1
    message = 'masa-vit: error: --suite gpu: no GPU, torch.cuda.is_available() is False\n'
    assert capsys.readouterr().err == message
    assert not list(tmp_path.iterdir())
    assert main(['benchmark']) == 1
    assert 'expected MODEL, or --suite gpu' in capsys.readouterr().err


def test_the_command_hands_over(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'a GPU')
    given: list[list[Case]] = []
    monkeypatch.setattr(gpu_suite, 'run_cases', lambda cases, report: given.append(cases))
    path = tmp_path / 'new' / 'x.json'
    assert run('--device', 'cuda', '--out', str(path)) == 0
    assert json.loads(path.read_text())['machine']['device'] == 'a GPU'
    assert capsys.readouterr().out.splitlines()[-1] == f'json: {path}'
    assert run('vit_tiny_masa_s4', '--device', 'cuda') == 0
    assert [{case.spec.name for case in cases} for cases in given] == [
        set(MODELS),
        {'vit_tiny_masa_s4'},
    ]
    for options, message in (
        (['--device', 'cpu'], 'measures on CUDA, got --device cpu'),
        (['--device', 'cuda', '--pairs', '3', '--compile'], r"got \['compile', 'pairs'\]"),
        (['vit_tiny_patch16_224', '--device', 'cuda'], "got 'vit_tiny_patch16_224'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(*options)
