"""`masa-vit data`: look at the boxes of a detector's data before training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from masa_vit.cli.config_arguments import CONFIG, add_cfg_options
from masa_vit.training.configs import load_config, readable_errors
from masa_vit.utils.arguments import positive_int, require
from masa_vit.utils.staging import check_file

EXAMPLES = """examples:
  masa-vit data my_detector.py
  masa-vit data my_detector.py --out sheet.png --cfg-options train_dataloader.dataset.data_root=DIR"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `masa-vit data`."""
    parser.add_argument('config', help=CONFIG)
    parser.add_argument(
        '--num-images',
        type=positive_int,
        default=500,
        metavar='N',
        help='training images to load, for sizes after resizing (default: 500)',
    )
    parser.add_argument(
        '--out', type=Path, help='a picture of images with their boxes (.png, .jpg)'
    )
    parser.add_argument('--force', action='store_true', help='replace a file that exists')
    add_cfg_options(parser, 'train_dataloader.dataset.data_root=DIR')


def run(args: argparse.Namespace) -> int:
    """Run `masa-vit data`."""
    require('rich')
    if args.out is not None:
        check_file(args.out, args.force)
    cfg = load_config(args.config, args.cfg_options)
    if cfg.get('default_scope') != 'mmdet':
        raise ValueError(
            f'{args.config!r} is not the config of a detector (default_scope="mmdet"): this command '
            'describes boxes; `masa-vit train` checks and counts the images of a classifier'
        )
    from mmdet.registry import DATASETS
    from mmengine.registry import DefaultScope

    from masa_vit.detection.data_report import describe_data, find_scales, save_sheet
    from masa_vit.training.model_building import build_model

    token, anchor = find_scales(build_model(cfg))
    print(
        f'token: {token:.0f} px, ' * (token is not None)
        + ('no anchors' if anchor is None else f'smallest anchor: {anchor:.0f} px')
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        for split in ('train', 'val'):
            with readable_errors(cfg):
                dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
            # mmdet's pipelines for validation leave the boxes in the pixels of the file
            report = describe_data(dataset, args.num_images if split == 'train' else 0)
            _print(split, report)
            for text in report.warnings(token, anchor):
                print(f'warning: {text}')
            if split == 'train' and args.out is not None:
                save_sheet(dataset, args.out)
    if args.out is not None:
        print(f'picture: {args.out}')
    return 0


def _print(split: str, report: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f'{split}: {report.images:,} images, {report.without_objects:,} of them without '
        'objects' + f'; sizes after resizing from {report.sampled:,}' * (report.sampled > 0)
    )
    table.add_column('class')
    resized = ('after resizing', '10 %', '90 %') if report.sampled else ()
    for name in ('objects', 'images', 'median side, px', *resized):
        table.add_column(name, justify='right')
    for each in report.classes:
        quantiles = (
            np.quantile(each.resized, (0.5, 0.1, 0.9)).round().astype(int).tolist()
            if len(each.resized)
            else ['-'] * 3
        )
        median = f'{np.median(each.sides):.0f}' if len(each.sides) else '-'
        numbers = [f'{each.objects:,}', f'{each.images:,}', median, *map(str, quantiles)]
        table.add_row(each.name, *numbers[: 3 + len(resized)])
    Console().print(table)
