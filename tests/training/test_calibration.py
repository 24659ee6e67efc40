"""A training run is compressed by its own images, and fine-tuned from there."""

from __future__ import annotations

import json

import pytest

from masa_vit.cli import main

SIZE = {'img_size': 16, 'patch_size': 8, 'embed_dim': 32, 'depth': 4, 'num_heads': 2}


@pytest.fixture
def run(tmp_path):
    """Config and checkpoint of a dense classifier, trained for a moment."""
    config = tmp_path / 'mine.py'
    config.write_text(
        "_base_ = 'masa_vit::cls/vit_tiny_masa_s4_digits.py'\n"
        f'model = dict(model_args={SIZE!r})\n'
        'train_cfg = dict(max_epochs=1)\n'
    )
    assert main(['train', str(config), '--dense', '--work-dir', str(tmp_path / 'run')]) == 0
    return tmp_path / 'run' / 'mine_dense.py', tmp_path / 'run' / 'epoch_1.pth'


def test_compress_and_fine_tune(run, tmp_path, capsys):
    config, checkpoint = run
    out = tmp_path / 'compressed'
    arguments = ['--num-atoms', 'auto', '--budget', '0.6', '--residual-rank', 'energy']
    arguments += ['--weighting', 'fisher', '--num-images', '64', '--no-control']
    source = [str(config), '--checkpoint', str(checkpoint)]
    assert main(['compress', *source, '--out', str(out), *arguments]) == 0
    report = json.loads((out / 'report.json').read_text())
    assert report['calibration_images'] == 64
    capsys.readouterr()

    assert main(['test', str(config), str(checkpoint), '--out', str(tmp_path / 'dense.json')]) == 0
    measured = json.loads((tmp_path / 'dense.json').read_text())
    assert report['top1']['before'] == pytest.approx(measured['metrics']['accuracy/top1'])
    assert report['top1_images']['before'] == measured['metrics']['accuracy/num_samples']

    tuned = tmp_path / 'tuned.py'
    tuned.write_text(
        "_base_ = 'masa_vit::cls/vit_tiny_masa_s4_digits.py'\n"
        f"model = dict(_delete_=True, type='ImageClassifier', model_name='local-dir:{out}',\n"
        f"    num_classes=10, init_from='{out}')\n"
        'train_cfg = dict(max_epochs=1)\n'
    )
    assert main(['train', str(tuned), '--work-dir', str(tmp_path / 'tuned')]) == 0
    fine = json.loads((tmp_path / 'tuned' / 'summary.json').read_text())
    capsys.readouterr()
    assert main(['compress', str(out), '--tuned', str(tmp_path / 'tuned')]) == 0
    updated = json.loads((out / 'report.json').read_text())
    assert updated['top1'].pop('epoch 1') == fine['metrics']['accuracy/top1']['last']
    assert updated['top1_images'].pop('epoch 1') == measured['metrics']['accuracy/num_samples']
    assert updated == report
    assert 'epoch 1' in capsys.readouterr().out
    assert main(['compress', str(out), '--tuned', str(tmp_path / 'run')]) == 1
    assert 'started from None' in capsys.readouterr().err
    assert main(['compress', str(tmp_path), '--tuned', str(tmp_path / 'tuned')]) == 1
    assert "report.json' does not exist" in capsys.readouterr().err

    assert report['top1']['without residual'] < report['top1']['after']
    total = report['parameters']['compressed']['total']
    assert fine['parameters']['total'] == total


def test_top1_on_some_of_the_validation_images(run, tmp_path):
    config, checkpoint = run
    reports = []
    for index, more in enumerate(
        (['--num-val', '40'], ['--num-val', '40'], ['--num-val', '99999'])
    ):
        out = tmp_path / str(index)
        source = [str(config), '--checkpoint', str(checkpoint), '--num-atoms', '2', '--no-control']
        assert main(['compress', *source, '--num-images', '64', '--out', str(out), *more]) == 0
        reports.append(json.loads((out / 'report.json').read_text()))
    assert reports[0] == reports[1]
    assert reports[0]['top1_images'] == {'before': 40, 'after': 40}
    assert reports[2]['top1_images']['before'] > 40


def test_folders_beside_a_config_are_refused(run, tmp_path, capsys):
    config, checkpoint = run
    source = [str(config), '--checkpoint', str(checkpoint), '--num-atoms', '2']
    out = tmp_path / 'compressed'
    assert main(['compress', *source, '--out', str(out), '--val', 'images']) == 1
    assert '--val is for models without a config' in capsys.readouterr().err
    assert not out.exists()
