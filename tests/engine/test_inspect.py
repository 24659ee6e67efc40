"""Inspection of a training run reads the shared model, not the folded one that predicts."""

from __future__ import annotations

import masa_vit.cls  # noqa: F401  (registers the classifier)
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from masa_vit.engine.inspect import load_run
from masa_vit.inspection.sources import load
from masa_vit.models import MasaVisionTransformer


def test_the_model_of_a_run_is_shared(tiny, tmp_path):
    loader = dict(dataset=dict(type='ImageFolder', data_root='.', pipeline=[]))
    config = dict(
        default_scope='mmengine',
        custom_imports=dict(imports=['masa_vit.cls', 'masa_vit.engine']),
        model=tiny(),
        val_dataloader=loader,
    )
    Config(config).dump(tmp_path / 'config.py')
    model = MODELS.build(config['model'])
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / 'epoch_1.pth')
    run = load_run(str(tmp_path / 'config.py'), str(tmp_path / 'epoch_1.pth'))
    assert type(run.model) is MasaVisionTransformer
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    source = load(str(tmp_path), load_run=load_run)
    assert source.model is not None, source.why
    assert [*source.weights.atoms] == ['q', 'k', 'v', 'o']
