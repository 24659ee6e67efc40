"""`masa-vit test`: evaluate a checkpoint."""

from __future__ import annotations

import argparse

from masa_vit.cli.config_arguments import (
    CONFIG,
    add_cfg_options,
    add_launcher,
    add_variant,
    config_of,
)
from masa_vit.training.evaluation import test
from masa_vit.training.launch import is_rank_0

EXAMPLES = """examples:
  masa-vit test my_config.py work_dirs/a/epoch_15.pth
  masa-vit test my_config.py epoch_15.pth --out metrics.json --cfg-options val_dataloader.batch_size=8
for a detector, AP per class, and the predictions as COCO results (a.bbox.json, a.segm.json):
  masa-vit test my_config.py epoch_12.pth --cfg-options test_evaluator.classwise=True
  masa-vit test my_config.py epoch_12.pth --cfg-options test_evaluator.outfile_prefix=a"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `masa-vit test`."""
    parser.add_argument('config', help=CONFIG)
    parser.add_argument('checkpoint', help='a file that training wrote')
    parser.add_argument('--work-dir', help='log, metrics (default: work_dirs/<config name>)')
    parser.add_argument('--out', metavar='FILE.json', help='one more file for the metrics')
    parser.add_argument('--force', action='store_true', help='overwrite --out')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    add_launcher(parser)
    add_variant(parser)
    add_cfg_options(parser, 'val_dataloader.batch_size=64')


def run(args: argparse.Namespace) -> int:
    """Run `masa-vit test`."""
    metrics = test(
        config_of(args),
        args.checkpoint,
        args.work_dir,
        out=args.out,
        force=args.force,
        amp=args.amp,
        launcher=args.launcher,
        cfg_options=args.cfg_options,
    )
    if is_rank_0():
        for name, value in metrics.items():
            print(f'{name}: {value:.6g}' if isinstance(value, float) else f'{name}: {value}')
    return 0
