"""Detect objects in images with a trained detector; the work is done by mmdet's DetInferencer."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from rich.console import Console
from rich.progress import track

import masa_vit.detection  # noqa: F401  (before mmdet's modules, which look for mmcv's operators)

# isort: split
import mmcv
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS

from masa_vit.detection.visualization import quiet_drawing
from masa_vit.models.loading import check_dtypes
from masa_vit.training.checkpoint_files import read_checkpoint
from masa_vit.training.configs import load_config, readable_errors
from masa_vit.training.wrapped_models import fold_for_inference
from masa_vit.utils.images import UnreadableImageError, read_image
from masa_vit.utils.messages import first_lines

__all__ = ['Detector']


class Detector:
    """A trained detector, ready for images.

    Preparation, masks and drawing are those of mmdet's `DetInferencer`, the attribute `inferencer`.
    A checkpoint of a run with `EMAHook` gives the averaged weights.

    Args:
        config: of the training run: path, `masa_vit::det/x.py`, or a loaded config.
        checkpoint: `.pth` of the run; the names of the classes are taken from it.
        device: default: a GPU if there is one.
        cfg_options: overrides by dotted key.

    Raises:
        FileNotFoundError: config or checkpoint are missing.
        ValueError: a mistyped key, a truncated checkpoint, or one that does not fit the config's
            model in every tensor.
    """

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | Path,
        device: str | torch.device | None = None,
        cfg_options: dict | None = None,
    ):
        cfg = load_config(config, cfg_options)
        loader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
        if 'pipeline' not in ((loader or {}).get('dataset') or {}):
            raise ValueError(
                f'config {cfg.filename or ""}: no test_dataloader.dataset.pipeline, which prepares '
                'the images'
            )
        cfg.test_dataloader = loader
        # the backends are a run's, with a folder to write to
        visualizer = cfg.get('visualizer') or dict(type='DetLocalVisualizer')
        cfg.visualizer = {**visualizer, 'vis_backends': None}
        device = str(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        with readable_errors(cfg):
            self.inferencer = _StrictInferencer(cfg, str(checkpoint), device, show_progress=False)
        self.inferencer.model = fold_for_inference(self.inferencer.model)
        self.classes = list(self.inferencer.model.dataset_meta['classes'])

    def __call__(
        self,
        images: Iterable[str | Path],
        score_thr: float = 0.3,
        batch_size: int = 1,
        on_error: str = 'raise',
        pictures: str | Path | None = None,
    ) -> list[dict[str, Any]]:
        """Detect objects in image files. All of them are read once before the first is predicted.

        Args:
            images: paths.
            score_thr: objects of this score or less are left out, everywhere.
            batch_size: images a forward pass.
            on_error: `'raise'` or `'skip'` an image that cannot be read; the latter's entry
                has `error` in place of `predictions`.
            pictures: folder for pictures with boxes and masks, whose subfolders are those of the
                images below the deepest one that they have in common.

        Returns:
            one `dict(path, predictions=[dict(name, label, score, bbox, mask), ...])` an image, the
            best object first; `bbox` is `[x1, y1, x2, y2]` in pixels, `mask` a COCO run-length
            encoding (absent when the detector makes none). With `pictures`, `picture` is its file.

        Raises:
            UnreadableImageError: names the file.
        """
        if not 0 <= score_thr < 1:
            raise ValueError(f'score_thr expects 0 to below 1, got {score_thr}')
        if batch_size < 1:
            raise ValueError(f'batch_size expects at least 1, got {batch_size}')
        if on_error not in ('raise', 'skip'):
            raise ValueError(f"on_error expects 'raise' or 'skip', got {on_error!r}")
        results: list[dict[str, Any]] = [{'path': str(path)} for path in images]
        for result in results:
            try:
                read_image(result['path'])
            except UnreadableImageError as error:
                if on_error == 'raise':
                    raise
                result['error'] = str(error)
        readable = [result for result in results if 'error' not in result]
        if pictures is not None:
            for result, picture in zip(readable, _picture_files(readable, pictures), strict=True):
                result['picture'] = str(picture)
        starts = range(0, len(readable), batch_size)
        for start in track(starts, 'detecting', disable=not Console().is_terminal):
            self._predict(readable[start : start + batch_size], score_thr)
        return results

    def _predict(self, batch: list[dict[str, Any]], score_thr: float) -> None:
        with quiet_drawing():
            outputs = self.inferencer(
                [read_image(result['path'])[..., ::-1] for result in batch],  # BGR
                batch_size=len(batch),
                return_vis='picture' in batch[0],
                pred_score_thr=score_thr,
            )
        for result, prediction in zip(batch, outputs['predictions'], strict=True):
            result['predictions'] = self._objects(prediction, score_thr)
        for result, picture in zip(batch, outputs['visualization'], strict=False):
            mmcv.imwrite(picture[..., ::-1], result['picture'])

    def _objects(self, prediction: dict[str, list], score_thr: float) -> list[dict[str, Any]]:
        objects = []
        for index, (label, score) in enumerate(
            zip(prediction['labels'], prediction['scores'], strict=True)
        ):
            if score > score_thr:
                objects.append({'name': self.classes[label], 'label': label})
                objects[-1]['score'] = round(score, 6)
                objects[-1]['bbox'] = [round(x, 2) for x in prediction['bboxes'][index]]
                if 'masks' in prediction:
                    objects[-1]['mask'] = prediction['masks'][index]
        return sorted(objects, key=lambda found: -found['score'])


class _StrictInferencer(DetInferencer):
    """DetInferencer that refuses a checkpoint without all tensors of the model."""

    def _init_model(self, cfg: Config, weights: str, device: str = 'cpu') -> Any:
        checkpoint = read_checkpoint(weights)
        model = MODELS.build(cfg.model)
        check_dtypes(model.state_dict(), checkpoint['state_dict'], weights)
        try:
            model.load_state_dict(checkpoint['state_dict'])
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f'{weights} does not match the model of the config: check num_classes and the '
                f'backbone. {first_lines(error, 12)}'
            ) from error
        self._load_weights_to_model(model, checkpoint, cfg)  # also the names of the classes
        model.cfg = cfg
        return model.to(device).eval()

    def _init_collate(self, cfg: Config) -> Any:
        # mmengine would warn that mmdet has no registry of functions
        return super()._init_collate(cfg) if 'collate_fn' in cfg.test_dataloader else pseudo_collate


def _picture_files(results: list[dict[str, Any]], folder: str | Path) -> list[Path]:
    """A file in `folder` for each image: its path below the folder that all have in common."""
    paths = [os.path.abspath(result['path']) for result in results]
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ''
    files = [Path(folder) / os.path.relpath(path, root) for path in paths]
    return [
        file
        if file.suffix.lower() in ('.jpg', '.jpeg', '.png')
        else file.with_name(f'{file.name}.png')
        for file in files
    ]
