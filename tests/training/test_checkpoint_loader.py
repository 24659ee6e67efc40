"""Checkpoints are data: no command executes what a file contains."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader

from masa_vit.training import test as evaluate
from masa_vit.training import train
from masa_vit.training.checkpoint_files import read_checkpoint
from masa_vit.training.configs import read_literals
from masa_vit.training.run_folding import fold_run
from masa_vit.utils.weight_files import read_weight_file

multiarray = (getattr(np, '_core', None) or np.core).multiarray


class Call:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


def payloads(marker: Path) -> dict[str, object]:
    touch = f'touch {marker}'
    code = f'open({str(marker)!r}, "w")'
    return {
        'system': Call(os.system, touch),
        'exec': Call(exec, code),
        'eval': Call(eval, code),
        'nested pickle': Call(pickle.loads, pickle.dumps(Call(os.system, touch))),
        'numpy': Call(multiarray.scalar, np.dtype('O'), pickle.dumps(Call(os.system, touch))),
        'getattr': Call(getattr, HistoryBuffer, '__init__'),
    }


PAYLOADS = [*payloads(Path('x'))]
FORMS = ['zip', 'legacy', 'pickle', 'bare zip']


def write(path: Path, payload: object, form: str) -> None:
    content = {'state_dict': {'a': torch.ones(2)}, 'meta': {'epoch': 1, 'iter': 1}, 'x': payload}
    if form in ('zip', 'legacy'):
        torch.save(content, path, _use_new_zipfile_serialization=form == 'zip')
        return
    data = pickle.dumps({'state_dict': {}, 'x': payload})
    if form == 'pickle':
        path.write_bytes(data)
    else:
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('archive/data.pkl', data)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('kind', PAYLOADS)
def test_hostile_files(toy_config, tmp_path, kind, form):
    marker, path = tmp_path / 'executed', tmp_path / 'hostile.pth'
    write(path, payloads(marker)[kind], form)
    work_dir = tmp_path / 'run'
    readers = {
        'read_weight_file': lambda: read_weight_file(path),
        'read_checkpoint': lambda: read_checkpoint(path),
        'CheckpointLoader': lambda: CheckpointLoader.load_checkpoint(str(path)),
        'train --resume': lambda: train(toy_config, work_dir, resume=path),
        'train, load_from': lambda: train(
            toy_config, work_dir, cfg_options={'load_from': str(path)}
        ),
        'test': lambda: evaluate(toy_config, path, work_dir),
        'fold': lambda: fold_run(toy_config, path, tmp_path / 'folded'),
    }
    for name, read in readers.items():
        with pytest.raises(ValueError, match=r'hostile\.pth'):
            read()
        assert not marker.exists(), name


@pytest.mark.parametrize('key', ['cfg', 'config'])
def test_the_config_in_a_checkpoint_is_not_executed(toy_config, tmp_path, key):
    train(toy_config, tmp_path / 'run', cfg_options={'train_cfg.max_epochs': 1})
    path = tmp_path / 'run' / 'epoch_1.pth'
    marker = tmp_path / 'executed'
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['meta'][key] = f'open({str(marker)!r}, "w")\ntrain_cfg = dict(max_epochs=1)\n'
    torch.save(checkpoint, path)
    train(toy_config, tmp_path / 'run', resume='auto', cfg_options={'train_cfg.max_epochs': 1})
    assert not marker.exists()


def test_files_of_mmengine_load(tmp_path):
    hub = MessageHub.get_instance('safe_loading')
    hub.update_scalar('loss', np.float32(2.0))
    content = {'message_hub': hub.state_dict(), 'best': np.float64(0.5), 'state_dict': {}}
    torch.save(content, tmp_path / 'stock.pth')
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'stock.pth'))
    assert loaded['message_hub']['log_scalars']['loss'].current() == 2.0
    assert loaded['best'] == 0.5


@pytest.mark.parametrize('name', ['openmmlab://resnet50', 'pavi://a', 's3://b/c.pth', 'mmcls://x'])
def test_other_schemes_are_refused(name):
    with pytest.raises(ValueError, match='is not supported; give a path or an http'):
        CheckpointLoader.load_checkpoint(name)


def test_literals_of_a_config():
    text = (
        "a = dict(b=1, c=[1, -2.5, ('x', None)])\nimport os\nd = os.getcwd()\ne = f()\n"
        "g = dict(h=dict(i={'j': True}))\n"
    )
    found = read_literals(text)
    assert found == {'a': {'b': 1, 'c': [1, -2.5, ['x', None]]}, 'g': {'h': {'i': {'j': True}}}}
    assert read_literals('not python (') == {}
