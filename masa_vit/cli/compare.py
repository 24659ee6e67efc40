"""`masa-vit compare`: train several configs and print a table."""

from __future__ import annotations

import argparse

from masa_vit.cli.config_arguments import add_training
from masa_vit.training.comparison import compare
from masa_vit.training.stopping import exit_code_when_stopped

EXAMPLES = """examples:
  masa-vit compare masa_vit::cls/vit_tiny_masa_s4_digits.py masa_vit::cls/vit_tiny_dense_digits.py
  masa-vit compare a.py b.py --work-dir work_dirs/pair --resume"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `masa-vit compare`."""
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='two or more configs')
    parser.add_argument('--work-dir', help='outputs (default: work_dirs/compare_<time>)')
    parser.add_argument(
        '--resume', action='store_true', help='skip finished trainings, go on with the others'
    )
    add_training(parser)


@exit_code_when_stopped
def run(args: argparse.Namespace) -> int:
    """Run `masa-vit compare`."""
    compare(
        args.configs,
        args.work_dir,
        resume=args.resume,
        amp=args.amp,
        seed=args.seed,
        auto_scale_lr=args.auto_scale_lr,
        cfg_options=args.cfg_options,
    )
    return 0
