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
    kinds = [('train', False), ('eval', False), ('fold-eval', False), ('eval', True)]
    run_cases([Case(what, spec(), compiled) for what, compiled in kinds], report, pairs=3)
    rows = read(report)['results']
    expected = [*PARTS, 'evaluation', 'evaluation after fold', 'evaluation']
    assert [row['what'] for row in rows] == expected
    assert [row['compile'] for row in rows] == [False] * 6 + [True]
    for row in rows:
        assert (row['name'], row['batch_size'], row['dtype']) == ('vit_tiny_masa_s2', 2, 'bf16')
        assert len(row['ratios']) == 3
    assert {'device', 'torch', 'timm', 'masa_vit'} <= set(read(report)['machine'])
    print_results(report)
    out = capsys.readouterr().out
    assert 'vit_tiny_masa_s2 over vit_tiny_patch16_224' in out
    assert out.count('training step, 2') == out.count('evaluation after fold, 2') == 1
    assert out.count('bf16, compiled') == 2, 'progress and table'


def test_a_case_without_memory_is_noted(spec, report, monkeypatch):
    fail = [True, False, False]
    evaluation = steps.evaluation

    def build(*args):
        if fail.pop(0):
            raise torch.OutOfMemoryError('CUDA out of memory.\nTried to allocate 20 GiB')
        return evaluation(*args)

    monkeypatch.setattr(steps, 'evaluation', build)
    cases = [Case('eval', spec(batch_size=size), False) for size in (4, 2)]
    run_cases(cases, report, pairs=1)
    name = 'eval of vit_tiny_masa_s2, batch 4, bf16'
    assert read(report)['notes'] == [f'{name}: out of memory. CUDA out of memory.']
    assert [row['batch_size'] for row in read(report)['results']] == [2]


def test_cases_without_time_are_noted(spec, report, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gpu_suite.time, 'monotonic', lambda: now[0])

    def measure(plan, specs, report):
        now[0] += 40.0

    monkeypatch.setattr(gpu_suite, 'measure_setting', measure)
    names = ['vit_base_masa_s2', 'vit_large_masa_s2', 'vit_base_masa_s2', 'vit_base_masa_s2']
    run_cases([Case('train', spec(name), False) for name in names], report, seconds=110)
    notes = read(report)['notes']
    assert [note.partition(':')[0] for note in notes] == [
        'train of vit_large_masa_s2, batch 2, bf16',  # may take 80 s
        'train of vit_base_masa_s2, batch 2, bf16',  # 40 s, for the third time
    ]
    assert '80 s do not fit into 110 s' in notes[0]
    assert now[0] == 80.0


def test_the_cases():
    cases = make_cases(MODELS, 'cuda')
    assert len(cases) == len(set(map(str, cases))) == 3 * 2 * (4 + 2)
    assert [case.compiled for case in cases] == [False] * 24 + [True] * 12
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
    current = []
    monkeypatch.setattr(torch.cuda, 'set_device', current.append)
    assert run('vit_tiny_masa_s4', '--device', 'cuda:1') == 0
    assert current == ['cuda:1'], 'the timer waits for the current device'
    names = [{case.spec.name for case in cases} for cases in given]
    assert names == [set(MODELS), {'vit_tiny_masa_s4'}]
    for options, message in (
        (['--device', 'cpu'], 'measures on CUDA, got --device cpu'),
        (['vit_tiny_patch16_224', '--device', 'cuda'], r"got \['vit_tiny_patch16_224'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            run(*options)
