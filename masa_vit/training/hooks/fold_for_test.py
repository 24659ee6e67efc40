"""Fold the model for testing."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from masa_vit.training.wrapped_models import fold_for_inference


@HOOKS.register_module()
class FoldHook(Hook):
    """Test the folded model.

    The priority is below that of `EMAHook`, which puts the averaged weights in place first.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self._model: nn.Module | None = None

    def before_test_epoch(self, runner: Any) -> None:
        """Replace the model by the folded one."""
        self._model = runner.model
        runner.model = fold_for_inference(runner.model).eval()

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Restore the model."""
        runner.model = self._model
