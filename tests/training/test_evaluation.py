"""test(): where the metrics go, and what is refused before the evaluation."""

import json
import sys

import pytest
import torch
import toy
from mmengine.registry import METRICS

from masa_vit.training import test as evaluate

MODULE = sys.modules[
    'masa_vit.training.evaluation'
]  # masa_vit.training has the function under its name


@METRICS.register_module()
class ToyNumbers(toy.ToyError):
    """Numbers of all kinds."""

    def compute_metrics(self, results):
        numbers = {'array': torch.tensor(0.5), 'nan': float('nan'), 'infinite': float('inf')}
        return {**super().compute_metrics(results), **numbers, 'text': 'a b'}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    torch.save({'state_dict': toy.ToyModel().state_dict()}, path)
    return path


def test_metrics_as_json(toy_config, checkpoint, tmp_path):
    out = tmp_path / 'metrics.json'
    options = {'val_evaluator.type': 'ToyNumbers'}
    metrics = evaluate(toy_config, checkpoint, tmp_path / 'run', out=out, cfg_options=options)
    record = json.loads(out.read_text(), parse_constant=pytest.fail)
    numbers = {'error': metrics['error'], 'array': 0.5, 'nan': None, 'infinite': None}
    expected = {'config': str(toy_config), 'checkpoint': str(checkpoint)}
    assert record == {**expected, 'metrics': {**numbers, 'text': 'a b'}}
    always = tmp_path / 'run' / 'test' / 'metrics.json'
    assert always.read_text() == out.read_text()

    before = out.stat().st_mtime_ns
    evaluate(toy_config, checkpoint, tmp_path / 'run')
    assert 'array' not in always.read_text(), 'the last evaluation'
    assert out.stat().st_mtime_ns == before
    evaluate(toy_config, checkpoint, tmp_path / 'run', out=out, force=True)
    assert always.read_text() == out.read_text()


def test_refused_before_the_evaluation(toy_config, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, 'Runner', None)
    out = tmp_path / 'metrics.json'
    out.write_text('mine')
    with pytest.raises(FileExistsError, match=r'metrics\.json.* exists; --force'):
        evaluate(toy_config, checkpoint, out=out)
    assert out.read_text() == 'mine'
    with pytest.raises(NotADirectoryError, match='expected a folder'):
        evaluate(toy_config, checkpoint, out=out / 'a.json')
    with pytest.raises(ValueError, match=r'expected a \.json file.*outfile_prefix'):
        evaluate(toy_config, checkpoint, out=tmp_path / 'results.pkl')
    with pytest.raises(ValueError, match=r'test_evaluator without test_dataloader.*val_evaluator'):
        evaluate(toy_config, checkpoint, cfg_options={'test_evaluator.type': 'ToyNumbers'})


def test_other_ranks_write_nothing(toy_config, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, 'is_main_process', lambda: False)
    out = tmp_path / 'metrics.json'
    assert 'error' in evaluate(toy_config, checkpoint, tmp_path / 'run', out=out)
    assert not list(tmp_path.rglob('metrics.json'))
