"""Fold the model for testing."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

import masa_vit
from masa_vit.engine.hooks.parameters import unwrap
from masa_vit.layers import SharedLinear


@HOOKS.register_module()
class FoldHook(Hook):
    """Test the folded model: the same outputs, at the cost of a dense one.

    The priority is below that of `EMAHook`, which puts the averaged weights in place first.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self._model: nn.Module | None = None

    def before_test_epoch(self, runner: Any) -> None:
        """Put the folded model in the place of the model."""
        if any(isinstance(module, SharedLinear) for module in runner.model.modules()):
            self._model = runner.model
            runner.model = masa_vit.fold(unwrap(runner.model)).eval()

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Restore the model."""
        if self._model is not None:
            runner.model, self._model = self._model, None
