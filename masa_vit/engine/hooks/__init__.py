"""Hooks of a run, registered in mmengine's HOOKS."""

from masa_vit.engine.hooks.checkpoint import SafeCheckpointHook
from masa_vit.engine.hooks.coefficients import CoefficientHook
from masa_vit.engine.hooks.finite import FiniteHook
from masa_vit.engine.hooks.fold import FoldHook
from masa_vit.engine.hooks.parameters import ParameterTableHook
from masa_vit.engine.hooks.progress import ProgressHook
from masa_vit.engine.hooks.seed import SeedHook
from masa_vit.engine.hooks.stop import StopHook
from masa_vit.engine.hooks.summary import SummaryHook

__all__ = [
    'CoefficientHook',
    'FiniteHook',
    'FoldHook',
    'ParameterTableHook',
    'ProgressHook',
    'SafeCheckpointHook',
    'SeedHook',
    'StopHook',
    'SummaryHook',
]
