"""What the command lines of trainings, tests and predictions have in common."""

from __future__ import annotations

import argparse

from masa_vit.training.configs import DictAction

CONFIG = 'path, or masa_vit::cls/<name>.py (det/ for detectors)'
"""What a config can be."""


def add_cfg_options(parser: argparse.ArgumentParser, example: str) -> None:
    """Add `--cfg-options`."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help=f'overrides of the config, e.g. {example}',
    )


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add `--launcher`."""
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes were started; pytorch: by torchrun',
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add how to train, one config or several: the names are those of `train`."""
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--seed', type=int, help='of all random numbers')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by batch size over auto_scale_lr.base_batch_size',
    )
    add_cfg_options(parser, 'train_cfg.max_epochs=5 optim_wrapper.optimizer.lr=1e-3')
