"""The path of a newcomer, by the command line: train, test, predict, inspect, fine-tune, resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masa_vit.cli import main

CONFIG = 'masa_vit::cls/vit_tiny_masa_s4_digits.py'
SMALL = ['model.model_args.embed_dim=32', 'model.model_args.depth=4', 'train_cfg.max_epochs=1']


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    """A small model of the demo's config, trained for one epoch."""
    folder = tmp_path_factory.mktemp('end_to_end') / 'run'
    assert main(['train', CONFIG, '--work-dir', str(folder), '--cfg-options', *SMALL]) == 0
    return folder


@pytest.fixture(scope='module')
def image(run) -> Path:
    from masa_vit.training import Digits

    path = run.parent / 'digit.png'
    Image.fromarray(np.asarray(Digits('val').load(0))).save(path)
    return path


def test_train_leaves_summary_checkpoint_and_tensorboard(run):
    summary = json.loads((run / 'summary.json').read_text())
    assert summary['finished']
    assert summary['metrics']['accuracy/top1']['last'] > 10
    assert Path(summary['checkpoints']['last']).is_file()
    events = list(Path(summary['tensorboard']).glob('events.out.tfevents*'))
    assert events
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(events[0]), size_guidance={'histograms': 0, 'images': 0})
    log.Reload()
    tags = log.Tags()
    assert {'loss', 'lr', 'accuracy/top1'} <= set(tags['scalars'])
    assert any('coef' in tag for tag in tags['histograms'])
    assert any('coef' in tag for tag in tags['images'])


def test_test_gives_the_accuracy_of_the_training(run, capsys):
    metrics = json.loads((run / 'summary.json').read_text())['metrics']
    argv = ['test', CONFIG, str(run / 'epoch_1.pth'), '--work-dir', str(run.parent / 'test')]
    assert main([*argv, '--cfg-options', *SMALL]) == 0
    assert f'accuracy/top1: {metrics["accuracy/top1"]["last"]:.6g}' in capsys.readouterr().out


def test_predict(run, image, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '300')  # a terminal that is wide enough for the path
    out = run.parent / 'predictions.json'
    argv = ['predict', CONFIG, str(run / 'epoch_1.pth'), str(image), '--out', str(out)]
    assert main([*argv, '--topk', '3', '--cfg-options', *SMALL]) == 0
    assert 'digit.png' in capsys.readouterr().out
    assert 'digit.png' in out.read_text()


def test_inspect_finds_the_config_and_the_history_of_the_run(run, image):
    out = run.parent / 'atoms'
    argv = ['inspect', str(run / 'epoch_1.pth'), '--run', str(run), '--images', str(image)]
    assert main([*argv, '--out', str(out)]) == 0
    report = json.loads((out / 'report.json').read_text())
    (model,) = report['models'].values()
    assert model['num_heads'] == 4
    assert model['projections']['q']['shares'], 'the shared model, not the folded one'
    assert 'class_attention' in model['images']  # prepared as in the validation of the run
    assert report['history']['epochs'] == [0, 1]
    assert {'report.html', 'history.gif', 'attention.png'} <= {path.name for path in out.iterdir()}


def test_a_work_dir_in_use_is_refused_and_nothing_overwritten(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob('*')}
    assert main(['train', CONFIG, '--work-dir', str(run), '--cfg-options', *SMALL]) == 1
    assert 'holds another run' in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob('*')} == before


def test_another_s_or_a_dense_model_does_not_load(run, capsys):
    argv = ['test', CONFIG, str(run / 'epoch_1.pth'), '--work-dir', str(run.parent / 'wrong')]
    assert main([*argv, '--cfg-options', *SMALL, 'model.model_args.num_atoms=2']) == 1
    assert 'S=4 atoms' in capsys.readouterr().err
    assert main([*argv, '--cfg-options', *SMALL, 'model.model_name=vit_tiny_patch16_224']) == 1
    assert 'does not match the model' in capsys.readouterr().err


def test_fine_tune_then_resume_without_the_initial_weights(run, tmp_path, capsys):
    """At another size; the file of the initial weights may be gone when the run goes on."""
    weights = tmp_path / 'weights.pth'
    weights.write_bytes((run / 'epoch_1.pth').read_bytes())
    options = [*SMALL, 'model.model_args.img_size=24', f'model.init_from={weights}']
    for name in ('train_dataloader', 'val_dataloader'):
        options.append(f'{name}.dataset.pipeline.0.transforms.0.height=24')
        options.append(f'{name}.dataset.pipeline.0.transforms.0.width=24')
    options[2] = 'train_cfg.max_epochs=2'
    options.append('default_hooks.checkpoint.max_keep_ckpts=2')
    tuned, again = tmp_path / 'tuned', tmp_path / 'again'
    assert main(['train', CONFIG, '--work-dir', str(tuned), '--cfg-options', *options]) == 0
    log = next(tuned.glob('*/*.log')).read_text()
    assert 'tensors matched' in log
    assert 'resized (1): pos_embed' in log
    weights.unlink()
    argv = ['train', CONFIG, '--work-dir', str(again), '--resume', str(tuned / 'epoch_1.pth')]
    assert main([*argv, '--cfg-options', *options]) == 0
    assert (again / 'epoch_2.pth').is_file()
