"""`masa-vit benchmark` on a detector: the twin is the folded model."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from masa_vit.cli import main
from masa_vit.engine.benchmark import detector_subject


def test_command(det_config: Path, tmp_path: Path) -> None:
    path = tmp_path / 'result.json'
    options = ['--batch-size', '1', '--img-size', '64', '--pairs', '1', '--device', 'cpu']
    assert main(['benchmark', str(det_config), *options, '--json', str(path)]) == 0
    result = json.loads(path.read_text())
    assert result['against'] == 'detector (dense)'
    assert result['parameters'][0] < result['parameters'][1]
    assert set(result['measurements']) == {'training step', 'evaluation', 'evaluation after fold'}


def test_the_twins_are_equal_in_function(det_config: Path) -> None:
    ours, dense = (detector_subject(str(det_config), d, 1, 64, 'cpu') for d in (False, True))
    images = torch.randn(1, 3, 64, 64)
    maps = [subject.model.eval().extract_feat(images)[2] for subject in (ours, dense)]
    torch.testing.assert_close(*maps)
