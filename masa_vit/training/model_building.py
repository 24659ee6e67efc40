"""The model of a config, without a run around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from masa_vit.models import load_exactly
from masa_vit.training.checkpoint_files import class_names
from masa_vit.training.configs import load_config, readable_errors


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model in its scope, for evaluation."""
    model_cfg = dict(cfg.model)
    if 'data_preprocessor' in cfg:
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    scope = cfg.get('default_scope', 'mmengine')
    with DefaultScope.overwrite_default_scope(scope), readable_errors(cfg):
        return MODELS.build(model_cfg).eval()


def load_classifier(config: str | Path | Config, checkpoint: str | Path) -> nn.Module:
    """Load the timm model of a trained classifier, with its image normalization.

    How the run normalised images and, if the checkpoint has them, the names of its classes go into
    the model's `pretrained_cfg`.

    Args:
        config: Of the run: path, `masa_vit::...`, or a loaded config.
        checkpoint: A file that training wrote; of a run with EMA, its averaged weights.

    Raises:
        FileNotFoundError: If config or checkpoint do not exist.
        ValueError: If this is not a classifier, or the checkpoint does not match.
    """
    cfg = load_config(config)
    classifier: Any = build_model(cfg)
    model: Any = getattr(classifier, 'model', None)
    if not hasattr(model, 'pretrained_cfg'):
        raise ValueError(
            f'{str(config)!r} builds a {type(classifier).__name__}; export takes classifiers '
            '(ImageClassifier). A detector is folded by masa-vit fold'
        )
    load_exactly(model, checkpoint)
    args = {**(cfg.model.get('model_args') or {}), 'num_classes': classifier.num_classes}
    if not hasattr(model, '_model_args'):  # newer versions of timm have recorded them
        model._model_args = args
    known: dict[str, Any] = {
        'num_classes': classifier.num_classes,
        'label_names': class_names(checkpoint, classifier.num_classes),
    }
    for name in ('mean', 'std'):
        if hasattr(classifier.data_preprocessor, name):  # a custom preprocessor may lack it
            known[name] = _shares(getattr(classifier.data_preprocessor, name))
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **known}
    return model


def _shares(values: Any) -> tuple[float, ...]:
    """Of 255, as timm has them."""
    return tuple(round(value / 255, 6) for value in values.flatten().tolist())
