"""The command line: help, exit codes, messages on one screen, the tools."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from masa_vit.cli import main

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    'train', 'test', 'predict', 'compress', 'fold', 'export', 'inspect', 'compare', 'benchmark',
)  # fmt: skip
TOY = ROOT / 'tests' / 'training' / 'toy_config.py'
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def toy_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(TOY.parent))


@pytest.mark.parametrize('command', COMMANDS)
def test_help_has_examples(command, capsys):
    assert main([command, '--help']) == 0
    out = capsys.readouterr().out
    assert 'examples:' in out
    assert f'masa-vit {command}' in out


@pytest.mark.parametrize('arguments', [[], ['fly'], ['train'], ['train', 'a.py', '--wings']])
def test_wrong_arguments(arguments, capsys):
    assert main(arguments) == 2
    assert 'usage:' in capsys.readouterr().err


def test_a_mistyped_command_is_not_replaced_by_a_later_argument(capsys):
    assert main(['traim', 'test']) == 2
    assert "invalid choice: 'traim'" in capsys.readouterr().err
    assert main(['--help', 'test']) == 0
    assert 'COMMAND' in capsys.readouterr().out


def test_an_error_is_one_message(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(['train', 'none.py']) == 1
    err = capsys.readouterr().err
    assert err.startswith("masa-vit: error: config 'none.py' does not exist")
    assert 'Traceback' not in err
    assert list(tmp_path.iterdir()) == []
    assert main(['train', 'none.py', '--traceback']) == 1
    assert 'Traceback' in capsys.readouterr().err
    monkeypatch.setenv('MASA_VIT_TRACEBACK', '1')
    assert main(['train', 'none.py']) == 1
    assert 'Traceback' in capsys.readouterr().err


def test_mistyped_override(capsys, tmp_path):
    arguments = ['train', str(TOY), '--work-dir', str(tmp_path / 'run')]
    assert main([*arguments, '--cfg-options', 'optim_wraper.optimizer.lr=1']) == 1
    assert "did you mean 'optim_wrapper'" in capsys.readouterr().err
    assert main([*arguments, '--cfg-options', 'model.widht=1']) == 1
    assert "model.widht: ToyModel has no such argument; did you mean 'width'?" in (
        capsys.readouterr().err
    )
    assert main([*arguments, '--cfg-options', 'wings=1']) == 1
    assert "the config has no key 'wings'. Its keys: " in capsys.readouterr().err


def test_train_then_test(capsys, tmp_path):
    work_dir = tmp_path / 'run'
    options = ['--cfg-options', 'train_cfg.max_epochs=1']
    assert main(['train', str(TOY), '--work-dir', str(work_dir), '--seed', '1', *options]) == 0
    last_lines = capsys.readouterr().out.splitlines()[-5:]
    assert last_lines[0].startswith('error: ')
    for line, name in zip(last_lines[1:3], ('epoch_1.pth', 'best_error_epoch_1.pth'), strict=True):
        assert line.endswith(str(work_dir / name))
    assert last_lines[-1].endswith(str(work_dir / 'summary.json'))
    value = last_lines[0].split()[1]

    assert main(['test', str(TOY), str(work_dir / 'epoch_1.pth'), '--work-dir', str(tmp_path)]) == 0
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert float(last_line.removeprefix('error: ')) == pytest.approx(float(value), rel=1e-3)

    assert main(['train', str(TOY), '--work-dir', str(work_dir), *options]) == 1
    assert 'holds another run' in capsys.readouterr().err
    assert main(['train', str(TOY), '--work-dir', str(tmp_path / 'new'), '--resume', *options]) == 0
    assert 'Nothing to resume' in capsys.readouterr().out


def test_tools_call_the_command():
    tools = sorted((ROOT / 'tools').glob('*.py'))
    assert {t.stem for t in tools} >= {'train', 'test', 'predict', 'inspect_atoms', 'compare'}
    result = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'train.py'), '--help'], capture_output=True, text=True
    )
    assert result.returncode == 0
    assert 'masa-vit train' in result.stdout


@pytest.mark.parametrize(
    ('package', 'arguments'),
    [
        ('mmengine', ['train', 'x.py']),
        ('rich', ['inspect', 'vit_tiny_masa_s4', '--out', 'atoms']),
        slow('matplotlib', ['inspect', 'vit_tiny_masa_s4', '--out', 'atoms']),
        slow('plotly', ['inspect', 'vit_tiny_masa_s4', '--out', 'atoms']),
        slow('rich', ['benchmark', 'vit_tiny_masa_s4', '--pairs', '1000']),
    ],
)
def test_missing_extra_is_named_at_once(tmp_path, package, arguments):
    """Before anything is timed or written."""
    (tmp_path / f'{package}.py').write_text(f"raise ModuleNotFoundError(name='{package}')\n")
    result = subprocess.run(
        [sys.executable, '-m', 'masa_vit.cli', *arguments],
        env={**os.environ, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert [path.name for path in tmp_path.iterdir() if path.name != '__pycache__'] == [
        f'{package}.py'
    ]
    assert result.returncode == 1
    extra = 'inspect' if arguments[0] == 'inspect' else 'train'
    assert f'masa-vit[{extra}]' in result.stderr
    assert 'Traceback' not in result.stderr
