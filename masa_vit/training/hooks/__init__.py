"""Hooks of a run, registered in mmengine's HOOKS."""

from masa_vit.training.hooks.classification import NumClassesCheckHook, SkippedImagesHook
from masa_vit.training.hooks.coefficient_history import CoefficientHook
from masa_vit.training.hooks.finite import FiniteHook
from masa_vit.training.hooks.fold_for_test import FoldHook
from masa_vit.training.hooks.parameter_table import ParameterTableHook
from masa_vit.training.hooks.progress_bar import ProgressHook
from masa_vit.training.hooks.run_summary import SummaryHook
from masa_vit.training.hooks.safe_checkpoint import SafeCheckpointHook
from masa_vit.training.hooks.stop import StopHook
from masa_vit.training.seeding import SeedHook

__all__ = [
    'CoefficientHook',
    'FiniteHook',
    'FoldHook',
    'NumClassesCheckHook',
    'ParameterTableHook',
    'ProgressHook',
    'SafeCheckpointHook',
    'SeedHook',
    'SkippedImagesHook',
    'StopHook',
    'SummaryHook',
]
