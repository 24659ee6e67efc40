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

from masa_vit.det import ValidationPicturesHook
from masa_vit.engine import test as evaluate
from masa_vit.engine import train


def test_in_training_and_testing(
    det_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
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

    # testing draws nothing, or all
    checkpoint = summary['checkpoints']['last']
    for folder, option, count in (('a', {}, 0), ('b', {'test_out_dir': 'pictures'}, 4)):
        options = {f'default_hooks.visualization.{k}': v for k, v in option.items()}
        evaluate(det_config, checkpoint, tmp_path / folder, cfg_options=few | options)
        assert len(list((tmp_path / folder).rglob('*.jpg'))) == count
        assert not list((tmp_path / folder).rglob('*.png'))


class Recorder:
    """In place of the visualizer: tag and step of what it was to draw."""

    def __init__(self) -> None:
        self.drawn: list[tuple[str, int]] = []

    def add_datasample(self, name: str, image: np.ndarray, step: int, **_: Any) -> None:
        self.drawn.append((name, step))


def validate(
    hook: ValidationPicturesHook, folder: Path, count: int, batch_size: int, loop: Any
) -> list[tuple[str, int]]:
    """Show the hook a validation; the images are called after their positions."""
    Image.new('RGB', (4, 4)).save(folder / '0.png')
    samples = [SimpleNamespace(img_path=str(folder / '0.png')) for _ in range(count)]
    for position, sample in enumerate(samples):
        path = folder / f'p{position}.png'
        path.write_bytes((folder / '0.png').read_bytes())
        sample.img_path = str(path)
    runner = SimpleNamespace(
        val_dataloader=SimpleNamespace(sampler=range(count)),
        visualizer=Recorder(),
        _train_loop=loop,
        epoch=3,
        iter=70,
    )
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


def build(**arguments: Any) -> ValidationPicturesHook:
    from mmdet.visualization import DetLocalVisualizer

    DetLocalVisualizer.get_instance('visualizer_of_a_test')
    with DefaultScope.overwrite_default_scope('mmdet'):
        return HOOKS.build(dict(type='ValidationPicturesHook', **arguments))


def test_wrong_number() -> None:
    with pytest.raises(ValueError, match=r'num_images is 0; expected 1 or more\. draw=False'):
        build(num_images=0)
