"""Classify images with a trained checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from torch import Tensor

from masa_vit.inspection.inspected import Run
from masa_vit.models import load_exactly
from masa_vit.training.checkpoint_files import class_names
from masa_vit.training.configs import load_config
from masa_vit.training.model_building import build_model
from masa_vit.training.transforms import to_chw
from masa_vit.training.wrapped_models import fold_for_inference
from masa_vit.utils.images import UnreadableImageError, read_image

__all__ = ['Predictor', 'load_run']


class Predictor:
    """A trained classifier, ready for images.

    The images go through the config's test (or else validation) pipeline. A checkpoint of a run
    with `EMAHook` gives the averaged weights, which mmengine stores as `state_dict`.

    Args:
        config: of the training run: path, `masa_vit::cls/x.py`, or a loaded config.
        checkpoint: `.pth` of the run, or `.safetensors` of the timm model.
        device: default: a GPU if there is one.
        cfg_options: overrides by dotted key.
        fold: run the folded model: the same outputs, at the cost of a dense one.

    Raises:
        FileNotFoundError: config or checkpoint are missing.
        ValueError: a mistyped key, or the checkpoint does not fit the config's model in every
            tensor.
    """

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | Path,
        device: str | torch.device | None = None,
        cfg_options: dict | None = None,
        fold: bool = True,
    ):
        cfg = load_config(config, cfg_options)
        loader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
        if loader is None:
            raise ValueError('the config has neither test_dataloader nor val_dataloader')
        self.pipeline = Compose(loader.dataset.get('pipeline', []))
        self.device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        model: Any = build_model(cfg)
        if not hasattr(model, 'num_classes'):
            raise ValueError(f'the config builds a {type(model).__name__}, expected a classifier')
        load_exactly(model.model, checkpoint)
        self.model: Any = (fold_for_inference(model) if fold else model).to(self.device)
        self.classes = _class_names(checkpoint, loader.dataset, model.num_classes)

    def __call__(
        self,
        images: Iterable[str | Path],
        topk: int = 5,
        batch_size: int = 32,
        on_error: str = 'raise',
    ) -> list[dict[str, Any]]:
        """Classify image files.

        Args:
            images: paths.
            topk: number of classes, the most probable first.
            batch_size: images a forward pass.
            on_error: `'raise'` or `'skip'` an image that cannot be read; the latter's entry
                has `error` in place of `predictions`.

        Returns:
            one `dict(path, predictions=[dict(name, index, probability), ...])` an image.
        """
        if topk < 1 or batch_size < 1:
            raise ValueError(f'topk and batch_size expect at least 1, got {topk} and {batch_size}')
        if on_error not in ('raise', 'skip'):
            raise ValueError(f"on_error expects 'raise' or 'skip', got {on_error!r}")
        results: list[dict[str, Any]] = [{'path': str(path)} for path in images]
        for start in range(0, len(results), batch_size):
            batch = results[start : start + batch_size]
            samples = []
            for result in batch:
                try:
                    samples.append({'inputs': self._read(result['path'])})
                except UnreadableImageError as error:
                    if on_error == 'raise':
                        raise
                    result['error'] = str(error)
            if samples:
                readable = (result for result in batch if 'error' not in result)
                for result, scores in zip(readable, self._probabilities(samples), strict=True):
                    result['predictions'] = self._top(scores, topk)
        return results

    @torch.inference_mode()
    def prepare(self, path: str | Path) -> Tensor:
        """An image file as the timm model takes it, (C, H, W), on the CPU."""
        data = default_collate([{'inputs': self._read(path)}])
        return self.model.data_preprocessor(data)['inputs'][0].cpu()

    def _read(self, path: str | Path) -> Tensor:
        return to_chw(self.pipeline({'inputs': read_image(path)})['inputs'])

    @torch.inference_mode()
    def _probabilities(self, samples: list[dict[str, Tensor]]) -> Tensor:
        """Samples -> (B, classes), on the CPU."""
        if len(shapes := {tuple(sample['inputs'].shape) for sample in samples}) > 1:
            raise ValueError(
                f'the pipeline gives images of different sizes ({sorted(shapes)[:3]}): end it with '
                'a resize or a crop, or predict with batch_size=1'
            )
        data = self.model.data_preprocessor(default_collate(samples))
        return self.model(**data, mode='tensor').float().softmax(dim=1).cpu()

    def _top(self, scores: Tensor, topk: int) -> list[dict[str, Any]]:
        values, indices = scores.topk(min(topk, len(scores)))
        return [
            {'name': self.classes[index], 'index': index, 'probability': round(value, 6)}
            for index, value in zip(indices.tolist(), values.tolist(), strict=True)
        ]


def _class_names(checkpoint: str | Path, dataset_cfg: dict, num_classes: int) -> list[str]:
    """The class names: the checkpoint's, else the config's dataset's, else their numbers."""
    classes = class_names(checkpoint, num_classes)
    if classes is None:
        try:
            classes = DATASETS.build(dataset_cfg).metainfo['classes']
        except (FileNotFoundError, ValueError) as error:
            print_log(f'no class names, so numbers: {error}', 'current', logging.WARNING)
    if classes is None or len(classes) != num_classes:
        return [str(index) for index in range(num_classes)]
    return list(classes)


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
