"""train() and test(): what they give, and what they refuse before the first step."""

import json
import os
import re
import shutil
import signal
import warnings
from pathlib import Path

import pytest
import torch
import toy
from mmengine.config import Config

from masa_vit.training import test as evaluate
from masa_vit.training import train

SHORT = {'train_cfg.max_epochs': 1}
LONG = {'train_cfg.max_epochs': 2}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A finished run of a MASA model: its folder, its config and its summary."""
    folder = tmp_path_factory.mktemp('run') / 'a'
    options = {'model': dict(_delete_=True, type='ToyViT', model_name='vit_tiny_masa_s2', depth=4)}
    config = Config.fromfile(str(Path(toy.__file__).with_name('toy_config.py')))
    config.merge_from_dict(options)
    vars(config)['_filename'] = None  # a config in memory
    return folder, config, train(config, folder, seed=1, cfg_options=LONG)


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
    with pytest.raises(ValueError, match='does not match the model'):
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


def test_resume_keeps_the_seed_and_needs_a_checkpoint_of_a_run(run, tmp_path):
    _, config, summary = run
    with pytest.raises(ValueError, match=r'--seed 2.*has seed 1'):
        train(config, tmp_path / 'x', resume=summary['checkpoints']['last'], seed=2)
    path = tmp_path / 'weights.pth'
    torch.save({'state_dict': {}}, path)
    with pytest.raises(ValueError, match='weights only'):
        train(config, tmp_path / 'x', resume=path)


def test_resume_starts_where_there_is_nothing_to_resume(toy_config, tmp_path, capsys):
    summary = train(toy_config, tmp_path / 'new', resume='auto', seed=1, cfg_options=SHORT)
    assert f'Nothing to resume in {tmp_path / "new"}' in capsys.readouterr().out
    again = train(toy_config, tmp_path / 'other', seed=1, cfg_options=SHORT)
    assert summary['metrics'] == again['metrics']


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*')}


def test_resume_from_a_path_into_another_folder(run, tmp_path):
    """It ends as the first run did, whose folder keeps its files, the best checkpoint too."""
    folder, config, _ = run
    before = contents(folder)
    again = tmp_path / 'again'
    summary = train(config, again, resume=folder / 'epoch_1.pth', cfg_options=LONG)
    assert summary['seed'] == 1
    assert [record['epoch'] for record in summary['history']] == [1, 2]
    first, second = (
        torch.load(path / 'epoch_2.pth', weights_only=True)['state_dict']
        for path in (folder, again)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert contents(folder) == before

    before = contents(again)
    with pytest.raises(ValueError, match='holds another run'):
        train(config, again, resume=folder / 'epoch_1.pth', cfg_options=LONG)
    assert contents(again) == before


def test_a_moved_run_finds_its_best_checkpoint(run, tmp_path):
    folder, config, _ = run
    moved = tmp_path / 'moved'
    shutil.copytree(folder, moved)
    for name in ('epoch_2.pth', 'summary.json'):
        (moved / name).unlink()
    (moved / 'last_checkpoint').write_text(str(folder / 'nowhere' / 'epoch_1.pth'))
    before = contents(folder)
    summary = train(config, moved, resume='auto', cfg_options=LONG)
    assert Path(summary['checkpoints']['best']).parent == moved
    assert len(list(moved.glob('best_*.pth'))) == 1
    assert contents(folder) == before


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ({'train_cfg.max_epochs': 5}, r'train_cfg\.max_epochs is 5, but 2 in the run'),
        ({**LONG, 'train_dataloader.batch_size': 2}, r'train_dataloader\.batch_size is 2, but 4'),
    ],
)
def test_another_length_is_another_run(run, tmp_path, option, message):
    folder, config, _ = run
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / 'x', resume=folder / 'epoch_1.pth', cfg_options=option)
    assert not (tmp_path / 'x').exists()


def test_mistakes_in_typed_dicts_name_their_place(toy_config, tmp_path):
    with pytest.raises(ValueError, match=r"optim_wrapper\.clip_gard.*'clip_grad'"):
        train(toy_config, tmp_path / 'a', cfg_options={'optim_wrapper.clip_gard.max_norm': 1})
    with pytest.raises(ValueError, match=r'model\.type.*ToyModle.*ToyModel'):
        train(toy_config, tmp_path / 'b', cfg_options={'model.type': 'ToyModle'})
    with pytest.raises(ValueError, match=r"no 'optim_wrapper'"):
        train(toy_config, tmp_path / 'c', cfg_options={'optim_wrapper': None})


def test_the_metric_of_the_best_checkpoint(toy_config, tmp_path):
    options = {'val_evaluator.prefix': 'toy'}
    wrong = {**options, 'default_hooks.checkpoint.save_best': 'coco/bbox_mAP'}
    with pytest.raises(ValueError, match=r"save_best='coco/bbox_mAP'.* named toy/\.\.\."):
        train(toy_config, tmp_path / 'wrong', cfg_options=wrong)
    assert not list((tmp_path / 'wrong').glob('*.pth'))
    options['default_hooks.checkpoint.save_best'] = 'auto'
    train(toy_config, tmp_path / 'auto', cfg_options={**options, 'train_cfg.max_epochs': 1})
    assert [path.name for path in (tmp_path / 'auto').glob('best_*')] == [
        'best_toy_error_epoch_1.pth'
    ]


@pytest.mark.parametrize('native', [True, False])
def test_amp_on_a_cpu_without_bfloat16(toy_config, tmp_path, monkeypatch, native):
    monkeypatch.setattr('platform.machine', lambda: 'x86_64')
    monkeypatch.setattr('torch.cpu._is_avx512_bf16_supported', lambda: native)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        train(toy_config, tmp_path, amp=True, cfg_options={'train_cfg.max_epochs': 1})
    assert any('slower than float32' in str(w.message) for w in caught) != native


def test_amp(toy_config, tmp_path):
    summary = train(toy_config, tmp_path, amp=True, cfg_options=SHORT)
    assert summary['config']['optim_wrapper']['type'] == 'BFloat16OptimWrapper'
    exact, amp = (
        evaluate(toy_config, summary['checkpoints']['last'], tmp_path / str(on), amp=on)['error']
        for on in (False, True)
    )
    assert amp != exact
    assert amp == pytest.approx(exact, rel=0.1)
    options = {**SHORT, 'optim_wrapper.type': 'X'}
    with pytest.raises(ValueError, match='--amp'):
        train(toy_config, tmp_path, amp=True, resume='auto', cfg_options=options)


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
    options = {
        'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=9, val_interval=3),
        'train_dataloader.sampler.type': 'InfiniteSampler',
        'default_hooks.checkpoint.by_epoch': False,
        'default_hooks.checkpoint.interval': 3,
        'param_scheduler': None,
        'log_processor': dict(by_epoch=False),
    }
    whole, again = tmp_path / 'whole', tmp_path / 'again'
    train(toy_config, whole, seed=1, cfg_options=options)
    train(toy_config, again, resume=whole / 'iter_6.pth', cfg_options=options)
    a, b = (torch.load(path / 'iter_9.pth', weights_only=True) for path in (whole, again))
    assert all(torch.equal(v, b['state_dict'][k]) for k, v in a['state_dict'].items())


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_full_disk(command, toy_config, tmp_path):
    result = command(
        *('train', toy_config, '--work-dir', 'run', '--seed', 1),
        *('--cfg-options', 'custom_hooks.0.full=2'),
    )
    assert result.returncode == 1
    assert re.search(
        r"error: cannot write '.*epoch_2\.pth' \([\d,]+ bytes, .* free\)", result.stderr
    )
    names = {path.name for path in (tmp_path / 'run').glob('.*')} - {'.lock'}
    assert not names
    assert (tmp_path / 'run/last_checkpoint').read_text() == str(tmp_path / 'run/epoch_1.pth')
    resumed = train(toy_config, tmp_path / 'run', resume='auto')
    whole = train(toy_config, tmp_path / 'whole', seed=1)
    assert resumed['metrics'] == whole['metrics']
