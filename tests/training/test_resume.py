"""A resumed run is the run that was killed: bit for bit, on the CPU."""

import json
import signal

import pytest
import torch

from masa_vit.training import load_config, train


def weights(work_dir, epoch=3):
    checkpoint = torch.load(work_dir / f'epoch_{epoch}.pth', weights_only=True)
    return {**checkpoint['state_dict'], **checkpoint['ema_state_dict']}, checkpoint


def assert_same_run(a, b):
    (weights_a, checkpoint_a), (weights_b, checkpoint_b) = weights(a), weights(b)
    assert weights_a.keys() == weights_b.keys()
    for name, value in weights_a.items():
        assert torch.equal(value, weights_b[name]), name
    for key in ('optimizer', 'param_schedulers'):
        assert str(checkpoint_a[key]) == str(checkpoint_b[key])
    summaries = [json.loads((d / 'summary.json').read_text()) for d in (a, b)]
    assert summaries[0]['metrics'] == summaries[1]['metrics']
    losses = [[r['loss'] for r in s['history']] for s in summaries]
    assert losses[0] == losses[1]
    assert [s['finished'] for s in summaries] == [True, True]


VARIANTS = {
    'validation=1': {},
    'iteration=8': {'optim_wrapper.accumulative_counts': 2},  # 5 batches: one is left over
    'iteration=7': {'train_dataloader.num_workers': 2},
    'iteration=6': {
        'train_dataloader.num_workers': 2,
        'train_dataloader.persistent_workers': True,
        'val_dataloader.num_workers': 1,
    },
}


@pytest.mark.parametrize(
    'killed',
    [pytest.param(name, marks=[pytest.mark.slow] * (name != 'validation=1')) for name in VARIANTS],
)
def test_killed_and_resumed(command, toy_config, tmp_path, killed):
    options = VARIANTS[killed]
    train(toy_config, tmp_path / 'whole', seed=3, cfg_options=options)
    overrides = [f'{key}={value}' for key, value in options.items()]
    killed = command(
        *('train', toy_config, '--seed', 3, '--work-dir', 'half'),
        *('--cfg-options', f'custom_hooks.0.{killed}', *overrides),
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    train(toy_config, tmp_path / 'half', resume='auto', cfg_options=options)
    assert_same_run(tmp_path / 'whole', tmp_path / 'half')


def test_the_config_of_a_resumed_run_starts_one(toy_config, tmp_path):
    """It resumes nothing, and names no checkpoint, which may be gone by then."""
    options = {'train_cfg.max_epochs': 2}
    first = train(toy_config, tmp_path / 'run', cfg_options=options)
    (dumped,) = (tmp_path / 'run').glob('*.py')
    before = dumped.read_text()
    train(toy_config, tmp_path / 'run', resume='auto', cfg_options=options)
    assert dumped.read_text() == before
    last = first['checkpoints']['last']
    train(toy_config, tmp_path / 'other', resume=last, cfg_options=options)
    cfg = load_config(tmp_path / 'other' / dumped.name)
    assert not cfg.resume
    assert cfg.load_from is None


def files(work_dir):
    """Names of the files that a run leaves in its work dir, without logs and config."""
    return {p.name for p in work_dir.iterdir() if p.is_file() and p.suffix != '.py'}


STOPS = {
    'iteration=7': {},
    'iteration=4': {'train_dataloader.num_workers': 2},  # the last batch of the epoch
    'iteration=5': {'optim_wrapper.accumulative_counts': 2},  # stops after iteration 6
    'iteration=11': {
        'train_dataloader.num_workers': 2,
        'train_dataloader.persistent_workers': True,
        'val_dataloader.num_workers': 1,
        'val_dataloader.persistent_workers': True,
    },
    'validation=2': {},
}


@pytest.mark.parametrize(
    'stopped',
    [pytest.param(name, marks=[pytest.mark.slow] * (name != 'iteration=7')) for name in STOPS],
)
def test_stopped_within_an_epoch_and_resumed(command, toy_config, tmp_path, stopped):
    options = STOPS[stopped]
    train(toy_config, tmp_path / 'whole', seed=3, cfg_options=options)
    overrides = [f'{key}={value}' for key, value in options.items()]
    result = command(
        *('train', toy_config, '--seed', 3, '--work-dir', 'half'),
        *('--cfg-options', f'custom_hooks.0.{stopped}', 'custom_hooks.0.sig=SIGTERM', *overrides),
    )
    assert result.returncode == 75, result.stderr
    assert 'stopped by SIGTERM' in result.stderr
    assert 'Traceback' not in result.stderr
    half = tmp_path / 'half'
    if stopped.startswith('iteration'):
        (saved,) = half.glob('stopped_iter_*.pth')
        assert (half / 'last_checkpoint').read_text() == str(saved)
        done = 6 if options.get('optim_wrapper.accumulative_counts') else int(stopped[10:]) + 1
        assert saved.name == f'stopped_iter_{done}.pth'
    train(toy_config, half, resume='auto', cfg_options=options)
    assert_same_run(tmp_path / 'whole', half)
    assert files(half) == files(tmp_path / 'whole')


@pytest.mark.slow
def test_stopped_twice_in_one_epoch(command, toy_config, tmp_path):
    train(toy_config, tmp_path / 'whole', seed=3)
    for iteration in (6, 7):
        result = command(
            *('train', toy_config, '--seed', 3, '--work-dir', 'half', '--resume'),
            *('--cfg-options', 'custom_hooks.0.sig=SIGTERM', 'custom_hooks.0.again=True'),
            f'custom_hooks.0.iteration={iteration}',
        )
        assert result.returncode == 75, result.stderr
        stopped = [p.name for p in (tmp_path / 'half').glob('stopped_iter_*')]
        assert stopped == [f'stopped_iter_{iteration + 1}.pth']
    train(toy_config, tmp_path / 'half', resume='auto')
    assert_same_run(tmp_path / 'whole', tmp_path / 'half')


def test_other_data_within_an_epoch_are_refused(toy_config, tmp_path):
    train(toy_config, tmp_path, cfg_options={'train_cfg.max_epochs': 1})
    options = {'train_cfg.max_epochs': 1, 'train_dataloader.dataset.size': 40}
    with pytest.raises(ValueError, match='had 5 batches in an epoch, this one has 10'):
        train(toy_config, tmp_path, resume='auto', cfg_options=options)


def test_an_outdated_checkpoint_is_removed_on_resuming(toy_config, tmp_path):
    """As if the run was killed between the pointer to a checkpoint and the removal."""
    train(toy_config, tmp_path / 'run', seed=3)
    whole = files(tmp_path / 'run')
    assert {'epoch_2.pth', 'epoch_3.pth'} <= whole
    assert 'epoch_1.pth' not in whole
    (tmp_path / 'run' / 'epoch_1.pth').touch()
    train(toy_config, tmp_path / 'run', resume='auto')
    assert files(tmp_path / 'run') == whole


def test_a_run_of_version_0_1_is_refused(toy_config, tmp_path):
    state = {'body.banks.q.atoms': torch.ones(2, 4, 4), 'body.blocks.0.coef.q': torch.ones(2)}
    torch.save({'state_dict': state, 'meta': {'epoch': 1, 'iter': 5}}, tmp_path / 'epoch_1.pth')
    with pytest.raises(ValueError, match=r'written by version 0\.1.*init_from'):
        train(toy_config, tmp_path / 'run', resume=tmp_path / 'epoch_1.pth')
