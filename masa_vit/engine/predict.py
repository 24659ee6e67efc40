"""Classify images with a trained checkpoint: `masa-vit predict` and `Predictor`."""

from __future__ import annotations

import argparse
import glob
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.logging import print_log
from mmengine.registry import DATASETS, MODELS
from torch import Tensor

from masa_vit.cls.datasets import UnreadableImageError, read_image
from masa_vit.cls.transforms import to_chw
from masa_vit.engine.config import DictAction, load_config

__all__ = ['Predictor', 'add_arguments', 'find_images', 'run']


class Predictor:
    """A trained classifier, ready for images.

    The images go through the config's test (or else validation) pipeline. A checkpoint of a run
    with `EMAHook` gives the averaged weights: they are what mmengine puts into `state_dict`.

    Args:
        config: of the training run: path, `masa_vit::cls/x.py`, or a loaded config.
        checkpoint: `.pth` of the run, or `.safetensors` of the timm model.
        device: default: a GPU if there is one.
        cfg_options: overrides by dotted key.

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
    ):
        cfg = load_config(config, cfg_options)
        loader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
        if loader is None:
            raise ValueError('the config has neither test_dataloader nor val_dataloader')
        self.pipeline = Compose(loader.dataset.get('pipeline', []))
        model_cfg = dict(cfg.model)
        if 'data_preprocessor' in cfg:
            model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
        self.device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        model = MODELS.build(model_cfg)
        _load_all(model.model, checkpoint)
        self.model = model.to(self.device).eval()
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
            topk: how many classes to name, the likeliest first; at most all are named.
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

    def _read(self, path: str) -> Tensor:
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


def find_images(sources: Sequence[str | Path]) -> list[Path]:
    """Files, folders (with all below them) and glob patterns -> image files, each once.

    Raises:
        FileNotFoundError: if one of the sources gives no image.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source).expanduser()
        # a file called 'a[1].png' is that file before it is a pattern
        matches = (
            [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        )
        files = [match for match in matches if match.is_file()]
        for folder in (match for match in matches if match.is_dir()):
            files += sorted(p for p in folder.rglob('*') if p.suffix.lower() in IMG_EXTENSIONS)
        if not files:
            raise FileNotFoundError(
                f'no image at {source}: expected an image file, a folder with images '
                f'({", ".join(IMG_EXTENSIONS)}), or a pattern such as "photos/*.png"'
            )
        found.update(dict.fromkeys(files))
    return list(found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `masa-vit predict`."""
    parser.add_argument('config', help='of the training run: path, or masa_vit::cls/<name>.py')
    parser.add_argument('checkpoint', help='.pth of the run, or .safetensors of the timm model')
    parser.add_argument('images', nargs='+', help='image files, folders (recursive), patterns')
    parser.add_argument('--topk', type=int, default=5, help='classes to name (default: 5)')
    parser.add_argument('--out', type=Path, help='JSON file for the predictions')
    parser.add_argument('--force', action='store_true', help='overwrite --out')
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: a GPU if there is one)')
    parser.add_argument('--batch-size', type=int, default=32, help='(default: 32)')
    parser.add_argument(
        '--on-error',
        choices=['raise', 'skip'],
        default='raise',
        help='at an image that cannot be read: stop (default), or note it and go on',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='config overrides'
    )


def run(args: argparse.Namespace) -> int:
    """Run `masa-vit predict`."""
    if args.out and args.out.exists() and not args.force:
        raise FileExistsError(f'{args.out} exists; --force overwrites it')
    if args.out and not args.out.absolute().parent.is_dir():
        raise FileNotFoundError(f'no folder {args.out.absolute().parent} for --out')
    images = find_images(args.images)
    predictor = Predictor(args.config, args.checkpoint, args.device, args.cfg_options)
    results = predictor(images, args.topk, args.batch_size, args.on_error)
    _print_table(results)
    if args.out:
        args.out.write_text(json.dumps(results, indent=2, ensure_ascii=False) + '\n', 'utf-8')
        print(f'predictions: {args.out}')
    if unread := sum('error' in result for result in results):
        print(f'{unread} of {len(results)} images could not be read')
    return 0


def _load_all(model: torch.nn.Module, checkpoint: str | Path) -> None:
    """Load a checkpoint that has to fit in every tensor: nothing is left at its random init."""
    from masa_vit.models import load_weights

    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f'no checkpoint {checkpoint}')
    report = load_weights(model, checkpoint)
    if report.missing or report.dropped or report.resized or report.unexpected:
        raise ValueError(
            f'{checkpoint} is not a checkpoint of the model in the config (another num_classes, '
            f'img_size or model_name?):\n{report}'
        )


def _class_names(checkpoint: str | Path, dataset_cfg: dict, num_classes: int) -> list[str]:
    """The class names: the checkpoint's, else the config's dataset's, else their numbers."""
    classes: Sequence[str] | None = None
    if Path(checkpoint).suffix != '.safetensors':
        meta = torch.load(checkpoint, map_location='cpu', weights_only=True).get('meta') or {}
        classes = (meta.get('dataset_meta') or {}).get('classes')
    if classes is None:
        try:
            classes = DATASETS.build(dataset_cfg).metainfo['classes']
        except (FileNotFoundError, ValueError) as error:
            print_log(f'no class names, so numbers: {error}', 'current', logging.WARNING)
    if classes is None or len(classes) != num_classes:
        return [str(index) for index in range(num_classes)]
    return list(classes)


def _print_table(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    rows = [
        [f'{escape(p["name"])} {p["probability"]:.1%}' for p in result['predictions']]
        if 'predictions' in result
        else ['[red]unreadable[/red]']
        for result in results
    ]
    table = Table('image', *(f'{rank + 1}.' for rank in range(max(map(len, rows), default=0))))
    for result, row in zip(results, rows, strict=True):
        table.add_row(escape(result['path']), *row)
    Console().print(table)
