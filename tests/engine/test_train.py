"""train() and test(): what they give, and what they refuse before the first step."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import toy
from mmengine.config import Config

from masa_vit.engine import test as evaluate
from masa_vit.engine import train

SHORT = {'train_cfg.max_epochs': 1}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A finished run of a MASA model: its folder, its config and its summary."""
    folder = tmp_path_factory.mktemp('run') / 'a'
    options = {'model': dict(_delete_=True, type='ToyViT', model_name='vit_tiny_masa_s2', depth=4)}
    config = Config.fromfile(str(Path(toy.__file__).with_name('toy_config.py')))
    config.merge_from_dict(options)
    config.filename = None
    return folder, config, train(config, folder, seed=1, cfg_options={'train_cfg.max_epochs': 2})


def test_summary(run):
    folder, _, summary = run
    on_disk = json.loads((folder / 'summary.json').read_text())
    assert summary.pop('summary') == str(folder / 'summary.json')
    assert summary == on_disk
    assert summary['finished'] is True
    assert summary['epoch'] == 2
    assert summary['seed'] == 1
    assert summary['samples'] == {'train': 20, 'val': 10}
    assert summary['config']['train_cfg']['max_epochs'] == 2
    assert summary['parameters']['attention'] < summary['parameters']['dense_attention']
    errors = [record['metrics']['error'] for record in summary['history']]
    assert summary['metrics']['error']['last'] == errors[-1]
    assert summary['metrics']['error']['best'] == min(errors)
    assert summary['seconds']['total'] >= sum(r['seconds'] for r in summary['history'])
    assert summary['versions']['torch'] == torch.__version__.partition('+')[0]
    summary['summary'] = str(folder / 'summary.json')


def test_checkpoint_is_plain_data(run):
    folder, _, summary = run
    assert os.path.dirname(summary['checkpoints']['best']) == str(folder)
    for path in summary['checkpoints'].values():
        checkpoint = torch.load(path, weights_only=True)
        assert checkpoint['meta']['dataset_meta'] == {'classes': ['a', 'b']}
        assert 'model' in checkpoint['meta']['cfg']
    assert (folder / 'last_checkpoint').read_text() == str(folder / 'epoch_2.pth')


def test_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(run[2]['tensorboard'])
    events.Reload()
    tags = events.Tags()
    assert {'loss', 'lr', 'error'} <= set(tags['scalars'])
    assert {f'coefficients/{p}' for p in 'qkvo'} == set(tags['histograms'])
    assert tags['images'] == ['coefficients']
    assert [e.step for e in events.Images('coefficients')] == [0, 2]


def test_the_console_is_short_and_the_log_complete(run, capsys, tmp_path):
    _, config, _ = run
    summary = train(config, tmp_path / 'b', cfg_options=SHORT)
    out = capsys.readouterr().out
    with open(summary['log']) as file:
        log = file.read()
    for text in ('System environment', 'Config:', 'Hooks will be executed'):
        assert text in log
        assert text not in out
    for text in ('Optimizer groups', 'attention', 'Epoch(train)', 'Epoch(val)'):
        assert text in out
        assert text in log
    assert out.count('\n') < 40


def test_evaluate_gives_the_metric_of_training(run, tmp_path):
    _, config, summary = run
    metrics = evaluate(config, summary['checkpoints']['last'], tmp_path)
    assert metrics['error'] == summary['metrics']['error']['last']
    best = evaluate(config, summary['checkpoints']['best'], tmp_path)
    assert best['error'] == summary['metrics']['error']['best']


def test_refuses_a_checkpoint_that_does_not_fit(run, toy_config, tmp_path):
    _, _, summary = run
    with pytest.raises(ValueError, match='does not fit the model'):
        evaluate(toy_config, summary['checkpoints']['last'], tmp_path)


def test_refuses_a_truncated_checkpoint(run, tmp_path):
    _, config, summary = run
    cut = tmp_path / 'cut.pth'
    with open(summary['checkpoints']['last'], 'rb') as file:
        cut.write_bytes(file.read()[:-100])
    with pytest.raises(ValueError, match='truncated'):
        evaluate(config, cut, tmp_path)
    with pytest.raises(ValueError, match='truncated'):
        train(config, tmp_path / 'new', resume=cut)
    assert not (tmp_path / 'new').exists()


def test_refuses_a_work_dir_in_use(run):
    folder, config, _ = run
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob('*'))
    with pytest.raises(ValueError, match=r'holds another run.*--resume'):
        train(config, folder)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in folder.rglob('*'))


def test_resume_needs_a_checkpoint_and_the_same_seed(run, tmp_path):
    _, config, summary = run
    with pytest.raises(FileNotFoundError, match='nothing to resume'):
        train(config, tmp_path / 'empty', resume='auto')
    assert not (tmp_path / 'empty').exists()
    with pytest.raises(ValueError, match=r'--seed 2.*has seed 1'):
        train(config, tmp_path / 'x', resume=summary['checkpoints']['last'], seed=2)
    path = tmp_path / 'weights.pth'
    torch.save({'state_dict': {}}, path)
    with pytest.raises(ValueError, match='weights only'):
        train(config, tmp_path / 'x', resume=path)


def test_resume_from_a_path_keeps_the_seed_and_goes_on(run, tmp_path):
    _, config, first = run
    summary = train(
        config,
        tmp_path / 'longer',
        resume=first['checkpoints']['last'],
        cfg_options={'train_cfg.max_epochs': 3},
    )
    assert summary['seed'] == 1
    assert [record['epoch'] for record in summary['history']] == [1, 2, 3]


def test_mistakes_in_typed_dicts_name_their_place(toy_config, tmp_path):
    with pytest.raises(ValueError, match=r"optim_wrapper\.clip_gard.*'clip_grad'"):
        train(toy_config, tmp_path / 'a', cfg_options={'optim_wrapper.clip_gard.max_norm': 1})
    with pytest.raises(ValueError, match=r'model\.type.*ToyModle.*ToyModel'):
        train(toy_config, tmp_path / 'b', cfg_options={'model.type': 'ToyModle'})
    with pytest.raises(ValueError, match=r"no 'optim_wrapper'"):
        train(toy_config, tmp_path / 'c', cfg_options={'optim_wrapper': None})


def test_amp(toy_config, tmp_path):
    summary = train(toy_config, tmp_path, amp=True, cfg_options=SHORT)
    assert summary['config']['optim_wrapper']['type'] == 'BFloat16OptimWrapper'
    with pytest.raises(ValueError, match='--amp'):
        train(
            toy_config, tmp_path, amp=True, resume='auto', cfg_options={'optim_wrapper.type': 'X'}
        )


def test_auto_scale_lr(toy_config, tmp_path, capsys):
    train(toy_config, tmp_path / 'a', auto_scale_lr=True, cfg_options=SHORT)
    assert 'Scaling the original LR by 0.5' in capsys.readouterr().out
    with pytest.raises(ValueError, match='base_batch_size'):
        train(
            *(toy_config, tmp_path / 'b'),
            auto_scale_lr=True,
            cfg_options={**SHORT, 'auto_scale_lr': None},
        )


def test_loop_by_iterations_resumes(toy_config, tmp_path):
    def options(iterations):
        return {
            'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=iterations, val_interval=3),
            'train_dataloader.sampler.type': 'InfiniteSampler',
            'default_hooks.checkpoint.by_epoch': False,
            'default_hooks.checkpoint.interval': 3,
            'param_scheduler': None,
            'log_processor': dict(by_epoch=False),
        }

    train(toy_config, tmp_path / 'whole', seed=1, cfg_options=options(9))
    train(toy_config, tmp_path / 'half', seed=1, cfg_options=options(6))
    train(toy_config, tmp_path / 'half', resume='auto', cfg_options=options(9))
    a, b = (torch.load(tmp_path / d / 'iter_9.pth', weights_only=True) for d in ('whole', 'half'))
    assert all(torch.equal(v, b['state_dict'][k]) for k, v in a['state_dict'].items())


def test_kill_while_a_checkpoint_is_written(command, toy_config, tmp_path):
    result = command(
        *('train', toy_config, '--work-dir', 'run', '--seed', 1),
        *('--cfg-options', 'custom_hooks.0.writing=2'),
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    names = {p.name for p in (tmp_path / 'run').iterdir()}
    assert 'epoch_1.pth' in names
    assert 'epoch_2.pth' not in names
    summary = train(toy_config, tmp_path / 'run', resume='auto')
    assert summary['finished']
