"""Variants of a config: one switch changes the sharing, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from masa_vit.cli import main
from masa_vit.models.schemes import SCHEMES
from masa_vit.training.config_variants import load_variant
from masa_vit.training.configs import load_config

DIGITS = 'masa_vit::cls/vit_tiny_masa_s4_digits.py'


@pytest.mark.parametrize(
    ('switch', 'name', 'model_name', 'added'),
    [
        ({'dense': True}, 'vit_tiny_dense_digits', 'vit_tiny_patch16_224', {}),
        (
            {'coefficients': 'mlp'},
            'vit_tiny_masa_s4_mlp_digits',
            'vit_tiny_masa_s4',
            {'coefficients': 'mlp'},
        ),
        (
            {'scheme': 'sequential'},
            'vit_tiny_masa_s4_sequential_digits',
            'vit_tiny_masa_s4',
            {'scheme': 'sequential'},
        ),
    ],
)
def test_variants_differ_in_the_model_alone(switch, name, model_name, added):
    before, after = load_config(DIGITS), load_variant(DIGITS, **switch)
    assert Path(after.filename).stem == name
    assert after.model.model_name == model_name
    old, new = before.to_dict(), after.to_dict()
    assert new['model'].pop('model_args') == {**old['model'].pop('model_args'), **added}
    del old['model']['model_name'], new['model']['model_name']
    assert new == old


def test_arguments_of_the_sharing_leave_the_dense_baseline(tmp_path):
    path = tmp_path / 'masa.py'
    path.write_text(f"_base_ = '{DIGITS}'\nmodel = dict(model_args=dict(num_atoms=2, depth=3))\n")
    dense = load_variant(path, dense=True)
    assert dense.model.model_args.depth == 3
    assert 'num_atoms' not in dense.model.model_args
    assert Path(dense.filename).name == 'dense.py'


def test_a_name_without_masa_gets_a_suffix(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = '{DIGITS}'\n")
    assert Path(load_variant(path, dense=True).filename).name == 'mine_dense.py'
    assert Path(load_variant(path, scheme='repeat').filename).name == 'mine_repeat.py'


def test_no_variant(tmp_path):
    path = tmp_path / 'dense.py'
    path.write_text(f"_base_ = '{DIGITS}'\nmodel = dict(model_name='vit_tiny_patch16_224')\n")
    with pytest.raises(ValueError, match='no model_name of a MASA model'):
        load_variant(path, dense=True)
    with pytest.raises(ValueError, match='shares nothing'):
        load_variant(DIGITS, dense=True, scheme='repeat')
    with pytest.raises(ValueError, match="scheme='rpt' is unknown"):
        load_variant(DIGITS, scheme='rpt')


@pytest.mark.slow
def test_every_scheme_trains(tmp_path):
    for scheme in SCHEMES:
        options = ['train_cfg.max_epochs=1', 'model.model_args.depth=6']
        options += ['model.model_args.residual_rank=4'] if scheme == 'low-rank' else []
        variant = load_variant(DIGITS, scheme=scheme)
        variant.dump(tmp_path / f'{scheme}.py')
        command = ['compare', str(tmp_path / f'{scheme}.py'), '--work-dir', str(tmp_path / scheme)]
        assert main([*command, '--cfg-options', *options]) == 0


def test_a_variant_is_trained_tested_predicted_and_folded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ['--cfg-options', 'train_cfg.max_epochs=1', 'model.model_args.depth=4']
    assert main(['train', DIGITS, '--scheme', 'sequential', *options]) == 0
    name = 'vit_tiny_masa_s4_sequential_digits'
    run = tmp_path / 'work_dirs' / name
    config, checkpoint = run / f'{name}.py', run / 'epoch_1.pth'
    summary = json.loads((run / 'summary.json').read_text())
    assert summary['config']['model']['model_args']['scheme'] == 'sequential'
    # the resolved config alone, and the shipped one with the switch
    assert main(['test', str(config), str(checkpoint), '--out', 'a.json']) == 0
    options = ['--cfg-options', 'model.model_args.depth=4']
    command = ['test', DIGITS, str(checkpoint), '--scheme', 'sequential', '--out', 'b.json']
    assert main([*command, *options]) == 0
    results = [json.loads((tmp_path / f).read_text())['metrics'] for f in ('a.json', 'b.json')]
    assert results[0] == results[1]
    assert main(['fold', str(config), str(checkpoint), '--out', 'folded']) == 0
    folded = tmp_path / 'folded' / f'{name}_folded'
    assert main(['test', f'{folded}.py', f'{folded}.pth', '--out', 'c.json']) == 0
    assert (
        json.loads((tmp_path / 'c.json').read_text())['metrics']['accuracy/top1']
        == (results[0]['accuracy/top1'])
    )


@pytest.mark.slow
def test_a_config_is_compared_with_its_dense_baseline(tmp_path):
    out = tmp_path / 'out'
    options = ['--cfg-options', 'train_cfg.max_epochs=1', 'model.model_args.depth=6']
    assert main(['compare', DIGITS, '--with-dense', '--work-dir', str(out), *options]) == 0
    rows = json.loads((out / 'compare.json').read_text())
    assert [row['name'] for row in rows] == ['vit_tiny_masa_s4_digits', 'vit_tiny_dense_digits']
    assert rows[0]['total_parameters'] < rows[1]['total_parameters']
