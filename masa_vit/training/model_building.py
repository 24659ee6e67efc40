"""Build a config's model, without a run around it."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from masa_vit.training.launch import readable_errors


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model in its scope, for evaluation."""
    model_cfg = dict(cfg.model)
    if 'data_preprocessor' in cfg:
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    scope = cfg.get('default_scope', 'mmengine')
    with DefaultScope.overwrite_default_scope(scope), readable_errors(cfg):
        return MODELS.build(model_cfg).eval()
