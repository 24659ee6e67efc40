"""Two processes on the CPU, by torchrun and gloo."""

import json

import torch


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


def test_launcher_without_torchrun(command, toy_config):
    result = command('train', toy_config, '--launcher', 'pytorch')
    assert result.returncode == 1
    assert 'torchrun' in result.stderr
    assert 'Traceback' not in result.stderr
