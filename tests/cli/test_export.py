from __future__ import annotations

import sys

import pytest
import timm
import torch

from masa_vit.cli import main
from masa_vit.cli.export import FORMATS

MODEL = ['vit_tiny_masa_s2', '--model-args', 'img_size=32', 'patch_size=8', 'embed_dim=32']
MODEL += ['depth=2', 'num_heads=2', 'num_classes=5', 'coefficients=mlp']


def export(*arguments: object) -> int:
    return main(['export', *map(str, arguments)])


def test_a_chain_of_forms(tmp_path, images, capsys):
    hub = tmp_path / 'hub'
    assert export(*MODEL, '--format', 'hub', '--out', hub) == 0
    assert f'{hub}: ' in capsys.readouterr().out.splitlines()[-1]
    small = tmp_path / 'small'
    assert export(hub, '--format', 'hub', '--bake', '--dtype', 'bf16', '--out', small) == 0
    assert 'of the model rounded to bf16' in capsys.readouterr().out
    for name in ('folded', 'torch-export-shared'):
        out = tmp_path / f'{name}{FORMATS[name].suffix}'
        assert export(small, '--format', name, '--out', out) == 0
        assert out.exists()
        assert f'{out}: ' in capsys.readouterr().out
    models = [
        timm.create_model(f'local-dir:{path}', pretrained=True).eval()
        for path in (small, tmp_path / 'folded')
    ]
    models.append(torch.export.load(tmp_path / 'torch-export-shared.pt2').module())
    outputs = [model(images) for model in models]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ('name', 'out', 'message'),
    [
        ('onnx', 'model', 'ends in .onnx'),
        ('torch-export', 'model.onnx', 'ends in .pt2'),
        ('hub', 'file', 'is a file, expected a folder'),
        ('onnx', 'file/model.onnx', 'is a file, expected a folder'),
        ('hub', 'old', '--force'),
        ('onnx', 'old.onnx', '--force'),
    ],
)
def test_refused_before_the_model_is_loaded(
    tmp_path, capsys, contents, monkeypatch, name, out, message
):
    (tmp_path / 'file').touch()
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old' / 'config.json').write_text('{}')
    (tmp_path / 'old.onnx').touch()
    before = contents(tmp_path)
    monkeypatch.setattr(
        'masa_vit.cli.export.load_named', lambda *args, **kwargs: pytest.fail('loaded')
    )
    assert export(*MODEL, '--format', name, '--out', tmp_path / out) == 1
    assert message in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize(('name', 'out'), [('hub', 'new'), ('torch-export', 'new/a.pt2')])
def test_a_place_that_cannot_be_written_is_refused_before(tmp_path, capsys, monkeypatch, name, out):
    def refuse(**kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('tempfile.mkdtemp', refuse)  # root may write anywhere
    monkeypatch.setattr(
        'masa_vit.cli.export.load_named', lambda *args, **kwargs: pytest.fail('loaded')
    )
    assert export(*MODEL, '--format', name, '--out', tmp_path / out) == 1
    assert 'cannot write into' in capsys.readouterr().err


def test_other_errors_are_one_message(tmp_path, capsys, monkeypatch):
    out = tmp_path / 'out'
    assert export(*MODEL, '--format', 'folded', '--bake', '--out', out) == 1
    assert '--bake is for --format hub' in capsys.readouterr().err
    assert export('vit_tiny_patch16_224', *MODEL[1:-1], '--format', 'hub', '--out', out) == 1
    assert 'nothing is shared' in capsys.readouterr().err
    assert export('vit_tiny', '--format', 'hub', '--out', out) == 1
    assert 'unknown model_name' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert export(*MODEL, '--format', 'onnx', '--out', tmp_path / 'a.onnx') == 1
    assert 'pip install "masa-vit[export]"' in capsys.readouterr().err
    for arguments in (['--format', 'tflite', '--out', out], ['--format', 'hub']):
        assert export(*MODEL, *arguments) == 2
    assert list(tmp_path.iterdir()) == []


def test_help_has_examples(capsys):
    assert main(['export', '--help']) == 0
    out = capsys.readouterr().out
    assert 'masa-vit export' in out
    assert all(name in out for name in FORMATS)
