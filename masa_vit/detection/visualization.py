"""Pictures of a detector's predictions."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmdet.engine.hooks import DetVisualizationHook
from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.fileio import get
from mmengine.runner import EpochBasedTrainLoop

from masa_vit.utils.images import read_image


@HOOKS.register_module()
class ValidationPicturesHook(DetVisualizationHook):
    """Draws the same few images after every validation, annotation left and prediction right.

    Each image has a tag, and its step is the epoch (the iteration in loops by
    iterations): TensorBoard's slider shows how an image's boxes and masks change. mmdet's own hook
    draws other images each time and files them all under one tag, of which TensorBoard keeps ten.

    In testing it draws only when `test_out_dir` or `show` is given, and then all images, as mmdet's.

    Args:
        num_images: images to draw, evenly spread over the validation set.
        **kwargs: those of mmdet's hook (`score_thr`, `draw`, `test_out_dir`, ...), save `interval`.
    """

    def __init__(self, num_images: int = 4, **kwargs: Any) -> None:
        if num_images < 1:
            raise ValueError(
                f'ValidationPicturesHook.num_images is {num_images}; expected 1 or more. draw=False '
                'draws none.'
            )
        super().__init__(**{'draw': True, **kwargs})
        self.num_images = num_images
        self._positions: list[int] = []
        self._seen = 0

    def before_val_epoch(self, runner: Any) -> None:
        """Choose the images."""
        total = len(runner.val_dataloader.sampler)
        self._positions = sorted({i * total // self.num_images for i in range(self.num_images)})
        self._seen = 0

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any, outputs: Sequence[Any]
    ) -> None:
        """Draw those of the batch that were chosen."""
        for sample in outputs:
            if self.draw and self._seen in self._positions and is_main_process():
                self._draw(runner, self._positions.index(self._seen), sample)
            self._seen += 1

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any, outputs: Sequence[Any]
    ) -> None:
        """Draw the batch, if there is a place for it."""
        if self.test_out_dir is not None or self.show:
            with quiet_drawing():
                super().after_test_iter(runner, batch_idx, data_batch, outputs)

    def _draw(self, runner: Any, number: int, sample: Any) -> None:
        by_epoch = isinstance(runner._train_loop, EpochBasedTrainLoop)
        data = get(sample.img_path, backend_args=self.backend_args)
        image = read_image(sample.img_path, data)
        with quiet_drawing():
            runner.visualizer.add_datasample(
                f'val_{number}_{Path(sample.img_path).stem}',
                image,
                data_sample=sample,
                show=self.show,
                wait_time=self.wait_time,
                pred_score_thr=self.score_thr,
                step=runner.epoch if by_epoch else runner.iter,
            )


@contextlib.contextmanager
def quiet_drawing() -> Iterator[None]:
    """Leave out mmengine's warnings of boxes and texts that touch the edge of the picture."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', r'Warning: The \w+ is out of bounds')
        yield
