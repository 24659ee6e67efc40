"""Two processes on the CPU, by torchrun and gloo."""

import json
import re

import pytest
import torch
from toy_command import TOY_CONFIG, run_command

from masa_vit.cli import main

TORCHRUN = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2')
TRAIN = ('--launcher', 'pytorch', '--seed', 1)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The work dir of a run that nothing has stopped."""
    folder = tmp_path_factory.mktemp('whole')
    result = run_command(
        *('train', TOY_CONFIG, *TRAIN, '--work-dir', folder / 'run'),
        *('--cfg-options', 'custom_hooks.0.dump=True'),
        launcher=TORCHRUN,
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    return folder / 'run', result


def last_weights(work_dir):
    return torch.load(work_dir / 'epoch_3.pth', weights_only=True)['state_dict']


def assert_same_end(run, other):
    assert all(torch.equal(a, last_weights(other)[name]) for name, a in last_weights(run).items())
    summaries = [json.loads((folder / 'summary.json').read_text()) for folder in (run, other)]
    assert summaries[0]['metrics'] == summaries[1]['metrics']


@pytest.mark.slow
def test_two_ranks_end_equal(whole):
    folder, result = whole
    ranks = [torch.load(folder / f'rank{rank}.pth') for rank in range(2)]
    for name, value in ranks[0]['parameters'].items():
        assert torch.equal(value, ranks[1]['parameters'][name]), name
    assert ranks[0]['seen'] != ranks[1]['seen']  # each rank has its share of the data
    summary = json.loads((folder / 'summary.json').read_text())
    assert summary['world_size'] == 2
    assert summary['finished']
    assert result.stdout.count('Optimizer groups') == 1


@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 1])
def test_a_dead_rank_is_named_and_a_restart_ends_equal(whole, command, toy_config, tmp_path, rank):
    result = command(
        *('train', toy_config, *TRAIN, '--work-dir', 'run', '--resume'),
        *('--cfg-options', 'custom_hooks.0.iteration=4', f'custom_hooks.0.rank={rank}'),
        launcher=(*TORCHRUN, '--max-restarts', '2'),
        env={'TORCH_DISABLE_SHARE_RDZV_TCP_STORE': '1'},
    )
    assert result.returncode == 0, result.stderr
    assert re.search(rf'rank {rank} \(process \d+\) of this training ended', result.stderr)
    assert_same_end(whole[0], tmp_path / 'run')


@pytest.mark.slow
def test_ranks_stop_together_when_one_is_asked_to(whole, command, toy_config, tmp_path):
    """All end with 75 after the step of iteration 4, of which torchrun makes a 1."""
    options = ('custom_hooks.0.iteration=4', 'custom_hooks.0.rank=1', 'custom_hooks.0.sig=SIGTERM')
    result = command(
        *('train', toy_config, *TRAIN, '--work-dir', 'run', '--cfg-options', *options),
        launcher=TORCHRUN,
    )
    assert result.returncode == 1
    assert 'exitcode  : 75' in result.stderr
    assert (tmp_path / 'run/last_checkpoint').read_text().endswith('stopped_iter_5.pth')
    result = command(
        *('train', toy_config, *TRAIN, '--work-dir', 'run', '--resume'), launcher=TORCHRUN
    )
    assert result.returncode == 0, result.stderr
    assert_same_end(whole[0], tmp_path / 'run')


def test_launcher_without_torchrun(toy_config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['train', str(toy_config), '--launcher', 'pytorch']) == 1
    err = capsys.readouterr().err
    assert 'torchrun' in err
    assert 'Traceback' not in err
