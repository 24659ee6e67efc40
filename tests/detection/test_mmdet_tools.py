"""MMDetection's own tools run on our configs, in the install without compiled operators."""

import subprocess
import sys

import pytest

pytest.importorskip('mmdet', reason='detection')

from tiny_detector import write_coco, write_config

from masa_vit.cli import main


def run_tool(tmp_path, *arguments):
    """In a new process: the tools import mmdet first."""
    result = subprocess.run(
        [sys.executable, '-m', 'masa_vit.cli', 'mmdet', *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / 'config.py', write_coco(tmp_path / 'coco'))


def test_browse_dataset(tmp_path, config):
    run_tool(tmp_path, 'browse_dataset', config, '--not-show', '--output-dir', 'pictures')
    assert len([*(tmp_path / 'pictures').glob('*.jpg')]) == 6


@pytest.mark.slow
def test_train_test_and_analyse(tmp_path, config):
    run_tool(
        tmp_path, 'train', config, '--work-dir', 'run', '--cfg-options', 'train_cfg.max_epochs=1'
    )
    tested = run_tool(tmp_path, 'test', config, 'run/epoch_1.pth', '--out', 'results.pkl')
    assert 'coco/bbox_mAP' in tested
    run_tool(tmp_path, 'confusion_matrix', config, 'results.pkl', 'figures')
    assert (tmp_path / 'figures' / 'confusion_matrix.png').is_file()
    (scalars,) = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    options = ('--keys', 'loss', '--style', 'default', '--out', 'loss.png')
    run_tool(tmp_path, 'analyze_logs', 'plot_curve', scalars, *options)
    assert (tmp_path / 'loss.png').is_file()
    assert 'Flops' in run_tool(tmp_path, 'get_flops', config)


def test_a_shipped_config_is_found_by_its_name(capsys):
    assert main(['mmdet', 'print_config', 'masa_vit::det/retinanet_vit_masa.py']) == 0
    assert "type='RetinaNet'" in capsys.readouterr().out


def test_an_unknown_tool(capsys):
    assert main(['mmdet', 'brows_dataset']) == 1
    assert "no tool 'brows_dataset'; did you mean browse_dataset" in capsys.readouterr().err


def test_the_help_of_a_tool(capsys):
    assert main(['mmdet', 'test', '--help']) == 0
    assert 'test config file path' in capsys.readouterr().out
