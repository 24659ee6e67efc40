"""Two processes on the CPU, by torchrun and gloo."""

import json

import pytest
import torch

from masa_vit.cli import main


@pytest.mark.slow
def test_two_ranks_end_equal(command, toy_config, tmp_path):
    torchrun = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2')
    result = command(
        *('train', toy_config, '--launcher', 'pytorch', '--work-dir', 'run', '--seed', 1),
        *('--cfg-options', 'custom_hooks.0.dump=True'),
        launcher=torchrun,
    )
    assert result.returncode == 0, result.stderr
    ranks = [torch.load(tmp_path / f'run/rank{rank}.pth') for rank in range(2)]
    for name, value in ranks[0]['parameters'].items():
        assert torch.equal(value, ranks[1]['parameters'][name]), name
    assert ranks[0]['seen'] != ranks[1]['seen']  # each rank has its share of the data
    summary = json.loads((tmp_path / 'run/summary.json').read_text())
    assert summary['world_size'] == 2
    assert summary['finished']
    assert result.stdout.count('Optimizer groups') == 1


def test_launcher_without_torchrun(toy_config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['train', str(toy_config), '--launcher', 'pytorch']) == 1
    err = capsys.readouterr().err
    assert 'torchrun' in err
    assert 'Traceback' not in err
