"""`masa-vit fold`: fold a trained model into the dense model that computes the same."""

from __future__ import annotations

import argparse
from pathlib import Path

from masa_vit.cli.config_arguments import CONFIG, add_variant, config_of
from masa_vit.training.run_folding import fold_run

EXAMPLES = """examples:
  masa-vit fold my_config.py work_dirs/a/epoch_15.pth --out folded/
  masa-vit test folded/my_config_folded.py folded/my_config_folded.pth"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `masa-vit fold`."""
    parser.add_argument('config', help=f'of the training run: {CONFIG}')
    parser.add_argument('checkpoint', help='a file that training wrote')
    parser.add_argument('--out', type=Path, required=True, help='folder for config and checkpoint')
    parser.add_argument('--force', action='store_true', help='overwrite them')
    add_variant(parser)


def run(args: argparse.Namespace) -> int:
    """Run `masa-vit fold`."""
    config, checkpoint = fold_run(config_of(args), args.checkpoint, args.out, args.force)
    print(f'config:     {config}\ncheckpoint: {checkpoint}')
    return 0
