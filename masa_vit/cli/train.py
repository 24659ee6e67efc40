"""`masa-vit train`: train a config."""

from __future__ import annotations

import argparse
from typing import Any

from masa_vit.cli.config_arguments import CONFIG, add_launcher, add_training, add_variant, config_of
from masa_vit.training.launch import is_rank_0, train
from masa_vit.training.stopping import exit_code_when_stopped

EXAMPLES = """examples:
  masa-vit train masa_vit::cls/vit_tiny_masa_s4_digits.py
  masa-vit train masa_vit::cls/vit_tiny_masa_s4_digits.py --dense   # its dense baseline
  masa-vit train my_config.py --work-dir work_dirs/a --cfg-options train_cfg.max_epochs=5
  masa-vit train my_config.py --work-dir work_dirs/a --resume
  torchrun --nproc-per-node 2 tools/train.py my_config.py --launcher pytorch"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `masa-vit train`."""
    parser.add_argument('config', help=CONFIG)
    parser.add_argument('--work-dir', help='outputs (default: work_dirs/<config name>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='auto|PATH',
        help="continue from the work dir's last checkpoint, if there is one, or from PATH",
    )
    add_launcher(parser)
    add_variant(parser)
    add_training(parser)


@exit_code_when_stopped
def run(args: argparse.Namespace) -> int:
    """Run `masa-vit train`."""
    summary = train(
        config_of(args),
        args.work_dir,
        resume=args.resume,
        amp=args.amp,
        seed=args.seed,
        auto_scale_lr=args.auto_scale_lr,
        launcher=args.launcher,
        cfg_options=args.cfg_options,
    )
    if is_rank_0(args.launcher):
        _print_outputs(summary)
    return 0


def _print_outputs(summary: dict[str, Any]) -> None:
    for name, values in summary['metrics'].items():
        if name.endswith('num_samples'):
            continue
        best = f'best {values["best"]:.4g}, epoch {values["best_epoch"]}'
        print(f'{name}: {values["last"]:.4g} ({best})')
    for name, path in summary.get('checkpoints', {}).items():
        print(f'{name + " checkpoint:":17}{path}')
    print(f'{"tensorboard:":17}tensorboard --logdir {summary["tensorboard"]}')
    print(f'{"summary:":17}{summary["summary"]}')
