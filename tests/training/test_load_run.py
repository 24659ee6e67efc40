"""Inspection of a training run reads the shared model, not the folded one that predicts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

import masa_vit.training  # noqa: F401  (registers the classifier)
from masa_vit.inspection.inspected import load
from masa_vit.models import MasaVisionTransformer
from masa_vit.training.prediction import load_run


def write_run(folder: Path, model: dict) -> str:
    """Write a work dir; return the text of its config."""
    config = dict(
        default_scope='mmengine',
        custom_imports=dict(imports=['masa_vit.training', 'masa_vit.training']),
        model=model,
        val_dataloader=dict(dataset=dict(type='ImageFolder', data_root='.', pipeline=[])),
    )
    Config(config).dump(folder / 'config.py')
    state = MODELS.build(model).state_dict()
    torch.save({'state_dict': state, 'meta': {}}, folder / 'epoch_1.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    return (folder / 'config.py').read_text()


def test_the_model_of_a_run_is_shared(tiny, tmp_path):
    write_run(tmp_path, tiny())
    run = load_run(str(tmp_path / 'config.py'), str(tmp_path / 'epoch_1.pth'))
    assert type(run.model) is MasaVisionTransformer
    source = load(str(tmp_path), load_run=load_run)
    assert source.model is not None, source.why
    assert [*source.weights.atoms] == ['q', 'k', 'v', 'o']


EVIL = 'evil_module_of_a_work_dir'


@pytest.mark.parametrize(
    'change',
    [
        lambda text: text.replace("type='ImageFolder'", f"type='{EVIL}.X'"),
        lambda text: text.replace("type='ImageFolder'", f"type='{EVIL}::X'"),
        lambda text: f"_base_ = './{EVIL}.py'\n" + text,
        lambda text: text.replace("'masa_vit.training'", f"'{EVIL}'"),
        lambda text: text.replace("default_scope = 'mmengine'", f"default_scope = '{EVIL}'"),
        lambda text: text.replace("data_root='.'", f"_scope_='{EVIL}', data_root='.'"),
        lambda text: text + "\nx = '{{$HOME:}}'\n",
        lambda text: text + f'\nimport {EVIL}\n',
        lambda text: text + '\nx = [i for i in (1,)]\n',
    ],
)
def test_inspecting_a_work_dir_executes_nothing(tiny, tmp_path, monkeypatch, change):
    text = write_run(tmp_path, tiny())
    marker = tmp_path / 'executed'
    (tmp_path / 'lib').mkdir()
    (tmp_path / 'lib' / f'{EVIL}.py').write_text(f'open({str(marker)!r}, "w")\nX = 1\n')
    monkeypatch.syspath_prepend(str(tmp_path / 'lib'))
    changed = change(text)
    assert changed != text
    (tmp_path / 'config.py').write_text(changed)
    source = load(str(tmp_path), load_run=load_run)
    assert not marker.exists()
    assert source.model is None
    assert '--config' in source.why
    assert [*source.weights.atoms] == ['q', 'k', 'v', 'o']
