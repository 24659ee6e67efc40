"""The command `masa-vit predict`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from masa_vit.engine.classify import Predictor
from masa_vit.engine.config import DictAction
from masa_vit.images import find_images

__all__ = ['add_arguments', 'run']


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
