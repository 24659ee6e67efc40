"""Arguments of the commands that take a config."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from masa_vit.models.schemes import SCHEMES
from masa_vit.training.config_variants import load_variant
from masa_vit.training.configs import DictAction

if TYPE_CHECKING:
    from mmengine.config import Config

CONFIG = 'path, or masa_vit::cls/<name>.py (det/ for detectors)'
"""Help text for a config."""


def add_cfg_options(parser: argparse.ArgumentParser, example: str) -> None:
    """Add `--cfg-options`."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help=f'overrides of the config, e.g. {example}',
    )


def add_variant(parser: argparse.ArgumentParser) -> None:
    """Add the switches of `load_variant`."""
    group = parser.add_argument_group('variant', 'another sharing of the MASA model of CONFIG')
    group.add_argument('--dense', action='store_true', help='the dense baseline')
    group.add_argument(
        '--coefficients', choices=['direct', 'channel', 'mlp'], help='source of the coefficients'
    )
    group.add_argument('--scheme', choices=SCHEMES, metavar='NAME', help=', '.join(SCHEMES))


def config_of(args: argparse.Namespace) -> Config:
    """Load `args.config` in the chosen variant."""
    return load_variant(
        args.config, dense=args.dense, coefficients=args.coefficients, scheme=args.scheme
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
    """Add the arguments of `train`, for one config or several."""
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--seed', type=int, help='of all random numbers')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by batch size over auto_scale_lr.base_batch_size',
    )
    add_cfg_options(parser, 'train_cfg.max_epochs=5 optim_wrapper.optimizer.lr=1e-3')
