"""The command `masa-vit predict`: classes or, when the config describes a detector, objects."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mmengine.config import Config

from masa_vit.cli.config_arguments import CONFIG, add_cfg_options, add_variant, config_of
from masa_vit.training.configs import load_config
from masa_vit.utils.images import find_images
from masa_vit.utils.staging import check_file, write_atomically

EXAMPLES = """examples:
  masa-vit predict my_config.py epoch_15.pth cat.jpg photos/ 'more/*.png'
  masa-vit predict my_config.py epoch_15.pth photos/ --topk 3 --out predictions.json
with the config of a detector, objects, and pictures of them:
  masa-vit predict my_config.py epoch_12.pth photos/ --score-thr 0.5 --out detections/"""

__all__ = ['add_arguments', 'run']

# the arguments that differ between the tasks, with their defaults
_DEFAULTS: dict[str, dict[str, Any]] = {
    'classifier': {'batch_size': 32, 'topk': 5},
    'detector': {'batch_size': 1, 'score_thr': 0.3},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `masa-vit predict`."""
    parser.add_argument('config', help=f'of the training run: {CONFIG}')
    parser.add_argument(
        'checkpoint', help=".pth of the run; a classifier's also as timm's .safetensors"
    )
    parser.add_argument('images', nargs='+', help='image files, folders (recursive), patterns')
    parser.add_argument(
        '--out',
        type=Path,
        help='for a classifier: JSON file for the predictions; for a detector: folder for '
        'predictions.json and vis/, pictures with boxes and masks',
    )
    parser.add_argument('--force', action='store_true', help='overwrite --out')
    parser.add_argument('--topk', type=int, help='for a classifier: classes to name (default: 5)')
    parser.add_argument(
        '--score-thr',
        type=float,
        help='for a detector: objects above this score, 0 to 1 (default: 0.3)',
    )
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: a GPU if there is one)')
    parser.add_argument('--batch-size', type=int, help='(default: classifier 32, detector 1)')
    parser.add_argument(
        '--on-error',
        choices=['raise', 'skip'],
        default='raise',
        help='at an image that cannot be read: stop (default), or report it and continue',
    )
    add_variant(parser)
    add_cfg_options(parser, 'model.num_classes=5')


def run(args: argparse.Namespace) -> int:
    """Run `masa-vit predict`."""
    cfg = load_config(config_of(args), args.cfg_options)
    task = _task(cfg)
    for name in ('batch_size', 'topk', 'score_thr'):
        if getattr(args, name) is None:
            setattr(args, name, _DEFAULTS[task].get(name))
        elif name not in _DEFAULTS[task]:
            option = f'--{name.replace("_", "-")}'
            raise ValueError(f'{option} is not for a {task}, which {args.config} describes')
    results = (_classify if task == 'classifier' else _detect)(cfg, args)
    if unread := sum('error' in result for result in results):
        print(f'{unread} of {len(results)} images could not be read')
    return 0


def _task(cfg: Config) -> str:
    kind = (cfg.get('model') or {}).get('type')
    if getattr(kind, '__name__', kind) in ('ImageClassifier', 'DistilledClassifier'):
        return 'classifier'
    if cfg.get('default_scope') == 'mmdet':
        return 'detector'
    raise ValueError(
        f'config {cfg.filename or ""}: model.type is {kind!r}; expected ImageClassifier, or a '
        "detector of mmdet and default_scope = 'mmdet'."
    )


def _classify(cfg: Config, args: argparse.Namespace) -> list[dict[str, Any]]:
    from masa_vit.training.prediction import Predictor

    out = args.out
    if out:
        check_file(out, args.force)
    images = find_images(args.images)
    predictor = Predictor(cfg, args.checkpoint, args.device)
    results = predictor(images, args.topk, args.batch_size, args.on_error)
    rows = [
        [f'{p["name"]} {p["probability"]:.1%}' for p in result.get('predictions', [])]
        for result in results
    ]
    _print_table(results, rows, [f'{rank + 1}.' for rank in range(max(map(len, rows), default=0))])
    if out:
        _write(out, results)
    return results


def _detect(cfg: Config, args: argparse.Namespace) -> list[dict[str, Any]]:
    from masa_vit.detection.inference import Detector

    file = pictures = None
    if args.out:
        file, pictures = args.out / 'predictions.json', args.out / 'vis'
        if args.out.is_file() or args.out.suffix.lower() == '.json':
            raise NotADirectoryError(
                f'--out {args.out} names a file; a detector writes a folder, with the predictions '
                f'in {file.name} and pictures in {pictures.name}/'
            )
        check_file(file, args.force)
        if pictures.exists() and not args.force:
            raise FileExistsError(f'{str(pictures)!r} exists; --force replaces its pictures')
    images = find_images(args.images)
    detector = Detector(cfg, args.checkpoint, args.device)
    results = detector(images, args.score_thr, args.batch_size, args.on_error, pictures)
    rows = [_count_objects(result.get('predictions', [])) for result in results]
    _print_table(results, rows, [f'objects above {args.score_thr:g}, and their best score'])
    if file:
        _write(file, results)
        if any('picture' in result for result in results):
            print(f'pictures:    {pictures}')
    return results


def _count_objects(predictions: list[dict[str, Any]]) -> list[str]:
    """Return a line per class, in the order of their best scores."""
    scores: dict[str, list[float]] = {}
    for found in predictions:
        scores.setdefault(found['name'], []).append(found['score'])
    return ['\n'.join(f'{len(s)} x {name} {s[0]:.1%}' for name, s in scores.items())]


def _write(path: Path, results: list[dict[str, Any]]) -> None:
    write_atomically(path, json.dumps(results, indent=2, ensure_ascii=False) + '\n')
    print(f'predictions: {path}')


def _print_table(results: list[dict[str, Any]], rows: list[list[str]], columns: list[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(Column('image', overflow='fold'), *columns)
    for result, row in zip(results, rows, strict=True):
        cells = ['[red]unreadable[/red]'] if 'error' in result else map(escape, row)
        table.add_row(escape(result['path']), *cells)
    Console().print(table)
