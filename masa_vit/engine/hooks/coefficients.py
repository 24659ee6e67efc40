"""The sharing coefficients in TensorBoard, as training goes."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.visualization import TensorboardVisBackend

from masa_vit.engine.hooks.parameters import unwrap


@HOOKS.register_module()
class CoefficientHook(Hook):
    """Writes, per projection, a histogram and a layer-by-atom picture of C; on rank 0 only.

    Does nothing for a model without sharing. Histograms go to TensorBoard, pictures to every
    backend of the visualizer.

    Args:
        interval: epochs between two writings; the last epoch is always written.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 5) -> None:
        if interval < 1:
            raise ValueError(f'CoefficientHook.interval is {interval}; expected 1 or more epochs.')
        self.interval = interval

    def before_train(self, runner: Any) -> None:
        """Write C as training begins."""
        self._write(runner, runner.epoch)

    def after_train_epoch(self, runner: Any) -> None:
        """Write C every `interval` epochs and at the end."""
        if self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner):
            self._write(runner, runner.epoch + 1)

    @master_only
    def _write(self, runner: Any, epoch: int) -> None:
        from masa_vit import analysis

        coefficients = analysis.coefficients(unwrap(runner.model))
        if not coefficients:
            return
        for backend in runner.visualizer._vis_backends.values():
            if isinstance(backend, TensorboardVisBackend):
                for projection, matrix in coefficients.items():
                    backend.experiment.add_histogram(f'coefficients/{projection}', matrix, epoch)
        figure = analysis.plot_coefficients(coefficients, title=f'epoch {epoch}')
        runner.visualizer.add_image('coefficients', figure_to_image(figure), epoch)


def figure_to_image(figure: Any) -> np.ndarray:
    """A matplotlib figure as an RGB image (H, W, 3), without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
