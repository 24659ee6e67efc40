"""The model of a training run, for `masa-vit inspect`."""

from __future__ import annotations

from masa_vit.inspection.inspected import Run
from masa_vit.training.configs import load_config
from masa_vit.training.prediction import Predictor


def load_run(config: str, checkpoint: str) -> Run:
    """Load a classifier with the config of its run, and the image transform of its validation.

    Raises:
        FileNotFoundError: If config or checkpoint do not exist.
        ValueError: If this is not a classifier, or the checkpoint does not match.
    """
    cfg = load_config(config)
    if 'model_name' not in cfg.model:  # a detector takes long to build, and has no one `forward`
        raise ValueError(
            f'{config!r} is of a {cfg.model.get("type")}, and --images needs a classifier'
        )
    predictor = Predictor(cfg, checkpoint, device='cpu', fold=False)
    return Run(predictor.model.model, predictor.prepare)
