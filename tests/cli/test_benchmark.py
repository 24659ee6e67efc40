from __future__ import annotations

import json

import pytest
import torch

from masa_vit.benchmark import steps
from masa_vit.cli import benchmark as command

TRAINING = {'training step', 'forward', 'backward', 'optimizer'}
SIZES = {
    'parameters',
    'trainable parameters',
    'optimizer state',
    'gradients all-reduced',
    'checkpoint',
}
FLOPS = {'FLOPs of evaluation', 'FLOPs of training'}


def test_everything_is_measured_and_written(run, tmp_path, capsys):
    path, picture = tmp_path / 'new' / 'result.json', tmp_path / 'ratios.png'
    options = [
        '--batch-size',
        '1',
        '2',
        '--dtype',
        'fp32',
        'bf16',
        '--pairs',
        '2',
        '--warm-up',
        '0',
    ]
    outputs = ['--json', str(path), '--picture', str(picture)]
    assert run('vit_tiny_masa_s2', *options, *outputs) == 0
    result = json.loads(path.read_text())
    assert set(result) == {
        *('machine', 'arguments', 'model', 'against', 'img_size', 'notes', 'results')
    }
    assert result['model'].startswith('vit_tiny_masa_s2 ')
    assert result['against'].startswith('vit_tiny_patch16_224 ')
    assert result['machine']['torch'] == torch.__version__
    assert result['machine']['threads'] == torch.get_num_threads()
    assert result['arguments']['batch_size'] == [1, 2]
    assert result['arguments']['model_args']['embed_dim'] == 32
    of_setting: dict[tuple, set[str]] = {}
    for row in result['results']:
        of_setting.setdefault((row.get('batch_size'), row.get('dtype')), set()).add(row['what'])
        values = row['values']
        pairs = zip(values['model'], values['against'], strict=True)
        assert row['ratios'] == [a / b for a, b in pairs]
        assert min(row['ratios']) <= row['ratio'] <= max(row['ratios'])
        assert len(row['ratios']) == (2 if row['unit'] == 's' else 1)
    timed = TRAINING | FLOPS | {'evaluation', 'evaluation after fold'}
    settings = [(batch, dtype) for batch in (1, 2) for dtype in ('fp32', 'bf16')]
    assert of_setting == {(None, None): SIZES, **dict.fromkeys(settings, timed)}
    assert picture.read_bytes().startswith(b'\x89PNG')
    out = capsys.readouterr().out
    assert 'batch 2, bf16, 32 x 32 px' in out
    assert out.count('evaluation after fold') == 4
    assert max(map(len, out.replace(str(tmp_path), '').splitlines())) <= 100
    assert out.splitlines()[-2:] == [f'json:    {path}', f'picture: {picture}']


def test_a_run_that_breaks_leaves_what_was_measured(run, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, 'evaluation', stop)
    path = tmp_path / 'result.json'
    with pytest.raises(KeyboardInterrupt):
        run('vit_tiny_masa_s2', '--measure', 'train', 'eval', '--pairs', '1', '--json', str(path))
    assert {row['what'] for row in json.loads(path.read_text())['results']} == TRAINING
    assert [file.name for file in tmp_path.iterdir()] == ['result.json']


def test_variants_of_ours_are_compared_with_each_other(run, tmp_path):
    path = tmp_path / 'result.json'
    sizes = ['img_size=32', 'patch_size=8', 'embed_dim=32', 'depth=4', 'num_heads=2']
    other = ['--against', 'vit_tiny_masa_s2', '--against-args', *sizes, 'coefficients=mlp']
    run(
        'vit_tiny_masa_s2',
        *other,
        '--measure',
        'sizes',
        'fold',
        '--pairs',
        '1',
        '--json',
        str(path),
    )
    result = json.loads(path.read_text())
    assert 'coefficients=mlp' in result['against']
    of_name = {row['what']: row for row in result['results']}
    assert of_name['parameters']['ratio'] < 0.7, 'two layers of four'
    assert of_name['fold']['against'] is None


def test_a_dense_model_has_nothing_to_fold(run, tmp_path, capsys):
    path = tmp_path / 'result.json'
    run('vit_tiny_patch16_224', '--pairs', '1', '--json', str(path))
    result = json.loads(path.read_text())
    assert 'nothing is shared' in capsys.readouterr().out
    assert 'nothing is shared' in result['notes'][0]
    sizes = [row['ratio'] for row in result['results'] if row['unit'] != 's']
    assert sizes == [1.0] * 7, 'compared with itself'
    with pytest.raises(ValueError, match='nothing is shared'):
        run('vit_tiny_patch16_224', '--measure', 'fold')


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('vit_massa', [], 'is not a model of timm'),
        ('vit_tiny_masa_s2', ['--against', 'resnet5000'], "'resnet5000' is not a model"),
        ('vit_tiny_masa_s2', ['--warm-up', '-1'], '--warm-up must be >= 0'),
        ('vit_tiny_masa_s2', ['--img-size', '64'], 'given twice'),
        ('vit_tiny_masa_s2', ['--against-args', 'num_atoms=1'], 'dense baseline does not take'),
        ('vit_tiny_masa_s2', ['--device', 'meta'], 'computes nothing'),
        ('vit_tiny_masa_s2', ['--device', 'abacus'], '--device abacus'),
        ('vit_tiny_masa_s2', ['--picture', 'x.xyz'], 'expected one of the suffixes'),
    ],
)
def test_bad_values_are_refused_before_anything_is_built(
    run, monkeypatch, tmp_path, name, options, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('timm.create_model', lambda *args, **kwargs: pytest.fail('built'))
    with pytest.raises(ValueError, match=message):
        run(name, *options)
    assert not list(tmp_path.iterdir())


def test_a_dtype_that_the_device_lacks_is_refused(run, monkeypatch):
    monkeypatch.setattr(torch.amp, 'is_autocast_available', lambda device: False)
    with pytest.raises(ValueError, match='no autocast on cpu'):
        run('vit_tiny_masa_s2', '--dtype', 'fp32', 'bf16')


@pytest.mark.parametrize('option', ['--json', '--picture'])
def test_a_path_that_cannot_be_written_is_refused(run, monkeypatch, tmp_path, option):
    monkeypatch.setattr('timm.create_model', lambda *args, **kwargs: pytest.fail('built'))
    (tmp_path / 'file').write_text('')
    for path in (tmp_path, tmp_path / 'file' / 'x.png'):
        with pytest.raises(OSError, match=r'is a folder|is a file|cannot write'):
            run('vit_tiny_masa_s2', option, str(path))


def test_a_missing_compiler_is_told(monkeypatch):
    def fail(function):
        def call(x):
            raise RuntimeError('No working C++ compiler found\n\nSet TORCH_LOGS')

        return call

    monkeypatch.setattr(torch, 'compile', fail)
    with pytest.raises(
        ValueError, match=r'on cpu here: No working C\+\+ compiler found\. On a CPU'
    ):
        command._check_compile('cpu')


def test_models_of_different_sizes_are_refused(run):
    sizes = ['img_size=64', 'patch_size=8', 'embed_dim=32', 'depth=2', 'num_heads=2']
    with pytest.raises(ValueError, match=r'\(32, 32\).*\(64, 64\)'):
        run('vit_tiny_masa_s2', '--against', 'vit_tiny_patch16_224', '--against-args', *sizes)


@pytest.mark.parametrize('pair', ['depth', '=3', 'a-b=1'])
def test_arguments_are_pairs(run, capsys, pair):
    with pytest.raises(SystemExit):
        run('vit_tiny_masa_s2', '--against-args', pair)
    assert 'not of the form key=value' in capsys.readouterr().err
