"""`masa-vit benchmark` on a detector: the baseline is the folded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from masa_vit.benchmark import Spec
from masa_vit.benchmark.memory import peak_memory
from masa_vit.cli import main
from masa_vit.detection.benchmark_subject import DETECTOR, detector_subject

OPTIONS = ['--batch-size', '1', '--img-size', '64', '--pairs', '1', '--device', 'cpu']


def test_command(det_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / 'result.json'
    argv = ['benchmark', str(det_config), *OPTIONS, '--dtype', 'fp32', 'bf16', '--json', str(path)]
    assert main(argv) == 0
    result = json.loads(path.read_text())
    assert result['against'] == 'detector (dense)'
    assert result['notes'] == ['no FLOPs: the computation of a detector depends on its proposals']
    rows = {(row['what'], row.get('dtype')): row for row in result['results']}
    assert rows['parameters', None]['ratio'] < 1
    assert rows['checkpoint', None]['ratio'] < 1
    timed = {what for what, dtype in rows if dtype == 'bf16'}
    assert timed == {
        *('training step', 'forward', 'backward', 'optimizer', 'evaluation'),
        'evaluation after fold',
    }
    assert 'no FLOPs' in capsys.readouterr().out


@pytest.mark.slow
def test_peak_memory(det_config: Path) -> None:
    spec = Spec(str(det_config), img_size=64, batch_size=1)
    peak, added = peak_memory(DETECTOR.build, spec)
    assert peak > added > 2**20


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--compile'], 'compile is not available here: mmdet does not compile'),
        (['--measure', 'train', 'load'], 'load is not available here'),
        (['--measure', 'compress'], 'compress is not available here'),
        (['--model-args', 'depth=2'], 'has its arguments in its config'),
    ],
)
def test_what_is_not_available_is_said_at_once(
    det_config: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(['benchmark', str(det_config), *OPTIONS, *options]) == 1
    assert message in capsys.readouterr().err


def test_checkpointing_reaches_the_backbone(det_config: Path) -> None:
    spec = Spec(str(det_config), img_size=64, batch_size=1, checkpointing=True)
    assert detector_subject(spec).model.backbone.with_cp


def test_the_two_are_equal_in_function(det_config: Path) -> None:
    ours, dense = (
        detector_subject(Spec(str(det_config), dense, img_size=64, batch_size=1))
        for dense in (False, True)
    )
    images = torch.randn(1, 3, 64, 64)
    maps = [subject.model.eval().extract_feat(images)[2] for subject in (ours, dense)]
    torch.testing.assert_close(*maps)
