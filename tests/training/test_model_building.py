"""The model of a training run is exported with what it expects of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mmengine.config import Config

from masa_vit.cli import main


@pytest.fixture
def trained(tiny: Any, tmp_path: Path) -> tuple[Path, Path, torch.nn.Module]:
    """Config, checkpoint and model of a classifier."""
    from mmengine.registry import MODELS

    import masa_vit.training  # noqa: F401

    preprocessor = dict(type='ImagePreprocessor', mean=(51, 102, 153), std=(25.5, 51, 51))
    model = tiny(data_preprocessor=preprocessor, init_from='none.pth')
    imports = dict(imports=['masa_vit.training', 'masa_vit.training'])
    cfg = Config(dict(custom_imports=imports, model=model))
    cfg.dump(tmp_path / 'mine.py')
    built = MODELS.build(model)
    meta = {'dataset_meta': {'classes': ['cat', 'dog', 'emu']}}
    torch.save({'meta': meta, 'state_dict': built.state_dict()}, tmp_path / 'epoch_1.pth')
    return tmp_path / 'mine.py', tmp_path / 'epoch_1.pth', built.model.eval()


def export(config: Path, checkpoint: Path, out: Path, *arguments: str) -> int:
    names = [str(config), '--checkpoint', str(checkpoint), '--out', str(out)]
    return main(['export', *names, *arguments])


def test_a_classifier(trained, tmp_path):
    config, checkpoint, model = trained
    images = torch.randn(2, 3, 16, 16)
    for name in ('folded', 'hub'):
        assert export(config, checkpoint, tmp_path / name, '--format', name) == 0
        loaded = timm.create_model(f'local-dir:{tmp_path / name}', pretrained=True).eval()
        torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=1e-5)
        data = timm.data.resolve_model_data_config(loaded)
        assert tuple(data['mean']) == (0.2, 0.4, 0.6)
        assert tuple(data['std']) == (0.1, 0.2, 0.2)
        assert tuple(data['input_size']) == (3, 16, 16)
        cfg = json.loads((tmp_path / name / 'config.json').read_text())['pretrained_cfg']
        assert cfg['label_names'] == ['cat', 'dog', 'emu']


def test_what_does_not_fit(trained, tmp_path, capsys):
    config, checkpoint, _ = trained
    out = tmp_path / 'out'
    other = config.with_name('other.py')
    other.write_text(f"_base_ = '{config}'\nmodel = dict(num_classes=4)\n")
    assert export(other, checkpoint, out, '--format', 'hub') == 1
    assert 'does not match' in capsys.readouterr().err
    assert export(config, tmp_path / 'none.pth', out, '--format', 'hub') == 1
    assert "none.pth' does not exist" in capsys.readouterr().err
    assert main(['export', str(config), '--format', 'hub', '--out', str(out)]) == 1
    assert 'needs its weights: --checkpoint' in capsys.readouterr().err
    assert not out.exists()
