"""A resumed run is the run that was killed: bit for bit, on the CPU."""

import json
import signal

import pytest
import torch

from masa_vit.engine import train


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


def test_a_run_of_version_0_1_is_refused(toy_config, tmp_path):
    state = {'body.banks.q.atoms': torch.ones(2, 4, 4), 'body.blocks.0.coef.q': torch.ones(2)}
    torch.save({'state_dict': state, 'meta': {'epoch': 1, 'iter': 5}}, tmp_path / 'epoch_1.pth')
    with pytest.raises(ValueError, match=r'written by version 0\.1.*init_from'):
        train(toy_config, tmp_path / 'run', resume=tmp_path / 'epoch_1.pth')
