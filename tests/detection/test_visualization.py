"""Pictures of the validation in TensorBoard and on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mmengine.registry import HOOKS, DefaultScope
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from masa_vit.detection import ValidationPicturesHook
from masa_vit.training import train


def test_training(det_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    few = {'model.test_cfg.rcnn.max_per_img': 5}
    summary = train(det_config, tmp_path / 'run', cfg_options=few)
    out = capsys.readouterr().out
    log = Path(summary['log']).read_text()
    for text in ('Evaluating bbox...', 'segm_mAP_copypaste'):  # said again by the lines below
        assert text in log
        assert text not in out

    events = EventAccumulator(summary['tensorboard'])
    events.Reload()
    assert {'loss', 'lr', 'coco/bbox_mAP', 'coco/segm_mAP'} <= set(events.Tags()['scalars'])
    sizes = {'val_0_000000000001': (80, 64), 'val_1_000000000003': (64, 48)}
    assert set(events.Tags()['images']) == {'coefficients', *sizes}
    for tag, (width, height) in sizes.items():
        pictures = events.Images(tag)
        assert [picture.step for picture in pictures] == [1, 2], 'a step an epoch'
        for picture in pictures:  # annotation left, prediction right
            assert (picture.width, picture.height) == (2 * width, height)
            file = f'vis_image/{tag}_{picture.step}.png'
            halves = np.split(np.asarray(Image.open(Path(summary['tensorboard'], file))), 2, axis=1)
            assert not np.array_equal(*halves)


class Recorder:
    """In place of the visualizer: tag and step of what it was to draw."""

    def __init__(self) -> None:
        self.drawn: list[tuple[str, int]] = []

    def add_datasample(self, name: str, image: np.ndarray, step: int, **_: Any) -> None:
        assert image.shape == (4, 4, 3)
        self.drawn.append((name, step))


def make_samples(folder: Path, count: int) -> list[SimpleNamespace]:
    """Predictions on images that are called after their positions."""
    paths = [folder / f'p{position}.png' for position in range(count)]
    for path in paths:
        Image.new('RGB', (4, 4)).save(path)
    return [SimpleNamespace(img_path=str(path)) for path in paths]


def validate(
    hook: ValidationPicturesHook, folder: Path, count: int, batch_size: int, loop: Any
) -> list[tuple[str, int]]:
    """What the hook draws in a validation."""
    runner = SimpleNamespace(
        val_dataloader=SimpleNamespace(sampler=range(count)),
        visualizer=Recorder(),
        _train_loop=loop,
        epoch=3,
        iter=70,
    )
    samples = make_samples(folder, count)
    hook.before_val_epoch(runner)
    for batch, start in enumerate(range(0, count, batch_size)):
        hook.after_val_iter(runner, batch, None, samples[start : start + batch_size])
    return runner.visualizer.drawn


@pytest.mark.parametrize('batch_size', [1, 4])
def test_evenly_spread(tmp_path: Path, batch_size: int) -> None:
    from mmengine.runner import EpochBasedTrainLoop

    by_epoch = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)
    hook = build(num_images=3)
    for _ in range(2):  # the same ones every time
        drawn = validate(hook, tmp_path, 10, batch_size, by_epoch)
        assert drawn == [('val_0_p0', 3), ('val_1_p3', 3), ('val_2_p6', 3)]
    few = validate(hook, tmp_path, 2, batch_size, by_epoch)
    assert few == [('val_0_p0', 3), ('val_1_p1', 3)]
    by_iteration = validate(hook, tmp_path, 1, batch_size, loop=None)
    assert by_iteration == [('val_0_p0', 70)]
    assert validate(build(draw=False), tmp_path, 10, batch_size, by_epoch) == []


def test_testing_draws_nothing_or_all(tmp_path: Path) -> None:
    runner = SimpleNamespace(work_dir=str(tmp_path), timestamp='now')
    for options, count in ((dict(), 0), (dict(test_out_dir='pictures'), 3)):
        hook = build(**options)
        hook._visualizer = Recorder()
        hook.after_test_iter(runner, 0, None, make_samples(tmp_path, 3))
        assert len(hook._visualizer.drawn) == count


def build(**arguments: Any) -> ValidationPicturesHook:
    from mmdet.visualization import DetLocalVisualizer

    DetLocalVisualizer.get_instance('visualizer_of_a_test')
    with DefaultScope.overwrite_default_scope('mmdet'):
        return HOOKS.build(dict(type='ValidationPicturesHook', **arguments))


def test_wrong_number() -> None:
    with pytest.raises(ValueError, match=r'num_images is 0; expected 1 or more\. draw=False'):
        build(num_images=0)
