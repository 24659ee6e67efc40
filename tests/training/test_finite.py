"""A loss or gradient that is not finite stops a training before its weights change."""

import json

import numpy as np
import pytest
import torch
import toy

from masa_vit.training import train
from masa_vit.training.hooks import FiniteHook
from masa_vit.training.hooks.finite import NonFiniteError

NAN = {'train_dataloader.dataset.nan': 3}
SKIP = {'custom_hooks.0': dict(type='FiniteHook', on_nonfinite='skip')}


def state(path):
    return torch.load(path, weights_only=True)['state_dict']


def test_a_file_with_nan_is_named(toy_config, tmp_path):
    with pytest.raises(NonFiniteError) as error:
        train(toy_config, tmp_path, seed=0, cfg_options=NAN)
    message = str(error.value)
    assert 'the loss is nan in epoch 1, iteration' in message
    assert 'learning rate 0.0' in message
    assert 'inputs that are not finite: 3.png\n' in message
    assert 'gradients that are not finite: body.0.weight, body.2.weight' in message
    assert not list(tmp_path.glob('*.pth'))


def test_the_last_checkpoint_is_kept(toy_config, tmp_path):
    """The rate is right in the first epoch: its checkpoint stays the last one, as it was."""
    options = dict(type='MultiStepLR', by_epoch=True, milestones=[1], gamma=1e32, end=3, begin=0)
    with pytest.raises((NonFiniteError, ValueError), match=r'epoch 2, iteration \d+'):
        train(toy_config, tmp_path / 'bad', seed=0, cfg_options={'param_scheduler': [options]})
    assert (tmp_path / 'bad/last_checkpoint').read_text() == str(tmp_path / 'bad/epoch_1.pth')
    assert all(torch.isfinite(v).all() for v in state(tmp_path / 'bad/epoch_1.pth').values())
    assert not json.loads((tmp_path / 'bad/summary.json').read_text())['finished']


def test_weights_that_are_not_finite_are_not_saved(toy_config, tmp_path, monkeypatch):
    """Finite gradients may lead there, too: here in the last step of the second epoch."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 9:
            with torch.no_grad():
                runner.model.body[0].weight[0, 0] = torch.inf

    monkeypatch.setattr(toy.KillHook, 'after_train_iter', after_train_iter, raising=False)
    with pytest.raises(ValueError, match=r'state_dict\.body\.0\.weight has 1 of 32 .*in epoch 2'):
        train(toy_config, tmp_path, seed=0)
    assert {p.name for p in tmp_path.glob('epoch_*')} == {'epoch_1.pth'}


@pytest.mark.parametrize('accumulate', [1, 5])
def test_skipping_leaves_such_steps_out_and_counts_them(toy_config, tmp_path, capsys, accumulate):
    options = {**NAN, **SKIP, 'optim_wrapper.accumulative_counts': accumulate}
    summary = train(toy_config, tmp_path, seed=0, cfg_options=options)
    assert summary['skipped_steps'] == 3  # one an epoch
    out = capsys.readouterr().out
    assert out.count('The step was skipped') == 3
    assert 'inputs that are not finite: 3.png' in out
    assert all(torch.isfinite(v).all() for v in state(tmp_path / 'epoch_3.pth').values())
    assert np.isfinite(summary['metrics']['error']['last'])


def test_skipping_has_an_end(toy_config, tmp_path):
    options = {**SKIP, 'train_dataloader.dataset.nan': [*range(20)]}
    options['custom_hooks.0'] = {**SKIP['custom_hooks.0'], 'max_in_a_row': 4}
    with pytest.raises(NonFiniteError, match='4 steps in a row were skipped'):
        train(toy_config, tmp_path, seed=0, cfg_options=options)


def test_a_step_that_the_loss_scale_leaves_out_is_no_fault():
    """Fused optimizers are called in any case; the scale is told by `found_inf`."""
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([torch.inf, 1.0])
    optimizer = torch.optim.AdamW([parameter])
    hook = FiniteHook()
    optimizer.found_inf = torch.ones(())
    hook._check_gradients(optimizer)
    assert parameter.grad is not None
    del optimizer.found_inf
    hook._check_gradients(optimizer)
    assert parameter.grad is None


def test_arguments():
    with pytest.raises(ValueError, match="on_nonfinite is 'ignore'; expected 'stop' or 'skip'"):
        FiniteHook(on_nonfinite='ignore')
    with pytest.raises(ValueError, match='max_in_a_row is 0'):
        FiniteHook(max_in_a_row=0)
