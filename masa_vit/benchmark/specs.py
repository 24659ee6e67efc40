"""The arguments of `masa-vit benchmark`, and what is refused before anything is built."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from masa_vit.benchmark.steps import DTYPES
from masa_vit.benchmark.subjects import Kind, Spec
from masa_vit.export.folding import MASA_ARGS
from masa_vit.utils.arguments import parse_pair
from masa_vit.utils.staging import check_file

MEASURES = {
    'train': 'training step with AdamW: the whole, forward, backward, optimizer',
    'eval': 'evaluation, weights composed on the fly',
    'fold-eval': 'evaluation after fold',
    'load': 'reading a safetensors file into a model that is as fast as a dense one',
    'fold': 'masa_vit.fold (seconds, no ratio)',
    'compress': 'compression of the dense baseline (seconds, no ratio)',
    'memory': 'peak memory of training, in a process of its own',
    'eval-memory': 'peak memory of evaluation, in a process of its own',
    'sizes': 'parameters, optimizer state, gradients all-reduced, checkpoint, FLOPs',
}
DEFAULT_MEASURES = ('train', 'eval', 'fold-eval', 'sizes')
SHARED_ONLY = ('fold-eval', 'fold', 'compress')
"""What can be measured only where weights are shared."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the tool."""
    parser.add_argument(
        'model',
        nargs='?',
        default='',
        help="a timm model name, ours or any other; or a detector's config",
    )
    parser.add_argument(
        '--suite',
        choices=('gpu',),
        help='measure ViT-S, ViT-B and ViT-L (or the MASA model MODEL alone) on a GPU, at batch sizes '
        '64 and 256, in bf16, eager and compiled, in less than 8 minutes',
    )
    parser.add_argument(
        '--against', help='the model to compare with; default: the dense model that MODEL folds to'
    )
    for option, owner in (('--model-args', 'MODEL'), ('--against-args', 'the other')):
        parser.add_argument(
            option,
            nargs='+',
            type=parse_pair,
            default=[],
            metavar='KEY=VALUE',
            help=f'arguments of timm.create_model for {owner}',
        )
    parser.add_argument(
        '--measure',
        nargs='+',
        choices=MEASURES,
        metavar='WHAT',
        help='; '.join(f'{name}: {text}' for name, text in MEASURES.items())
        + f' (default: {" ".join(DEFAULT_MEASURES)})',
    )
    parser.add_argument('--batch-size', nargs='+', type=int, default=[8], help='one or several')
    parser.add_argument(
        '--dtype',
        nargs='+',
        choices=DTYPES,
        default=['fp32'],
        help='one or several; bf16 is autocast',
    )
    parser.add_argument('--compile', action='store_true', help='torch.compile both models')
    parser.add_argument(
        '--checkpointing', action='store_true', help='recompute the blocks in the backward pass'
    )
    parser.add_argument('--img-size', type=int, help="default: the model's own, 1024 for detectors")
    parser.add_argument('--pairs', type=int, default=7, help='alternated pairs to time')
    parser.add_argument('--warm-up', type=int, default=1, help='runs of each before that')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, help='of torch on the CPU')
    parser.add_argument('--json', '--out', type=Path, help='also write the results to this file')
    parser.add_argument('--picture', type=Path, help='also draw the ratios (.png, .svg, .pdf)')


def make_specs(args: argparse.Namespace, batch_size: int) -> tuple[Spec, Spec]:
    """The model and the other of a batch size; a dense baseline has the arguments of the model."""
    common: dict[str, Any] = dict(
        batch_size=batch_size,
        img_size=args.img_size,
        device=args.device,
        checkpointing=args.checkpointing,
    )
    model_args, against_args = dict(args.model_args), dict(args.against_args)
    if args.against is None:
        against_args = {**model_args, **against_args}
    return (
        Spec(args.model, False, model_args, **common),
        Spec(args.against or args.model, args.against is None, against_args, **common),
    )


def check_arguments(args: argparse.Namespace, kind: Kind) -> None:
    """Refuse, before anything is built, what cannot be measured.

    Raises:
        ValueError: For a value outside its range, or what this kind of model, device or machine lacks.
        OSError: For a file that cannot be written.
    """
    if not args.model:
        raise ValueError('expected MODEL, or --suite gpu')
    for option, least in (('pairs', 1), ('warm_up', 0), ('threads', 1), ('img_size', 1)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise ValueError(f'--{option.replace("_", "-")} must be >= {least}, got {value}')
    if min(args.batch_size) < 1:
        raise ValueError(f'--batch-size must be >= 1, got {args.batch_size}')
    for name in (*(args.measure or ()), *(('compile',) if args.compile else ())):
        if name in kind.missing:
            raise ValueError(f'{name} is not available here: {kind.missing[name]}')
    if args.against is None and (wrong := MASA_ARGS & set(dict(args.against_args))):
        raise ValueError(
            f'--against-args has {sorted(wrong)}, which the dense baseline does not take: name the '
            f'other model, e.g. --against {args.model}'
        )
    _check_device(args.device, args.dtype)
    for spec in make_specs(args, args.batch_size[0]):
        kind.check(spec)
    for path in filter(None, (args.json, args.picture)):
        check_file(path)
    if args.picture:
        _check_format(args.picture)
    if args.compile:
        check_compile(args.device)


def _check_device(name: str, dtypes: list[str]) -> None:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f'--device {name}: {str(error).splitlines()[0]}') from error
    if device.type == 'meta':
        raise ValueError('--device meta computes nothing that could be timed')
    if 'bf16' in dtypes and not torch.amp.is_autocast_available(device.type):
        raise ValueError(f'--dtype bf16: torch has no autocast on {name}')
    if 'bf16' in dtypes and device.type == 'cuda' and not torch.cuda.is_bf16_supported():
        raise ValueError(f'--dtype bf16: {torch.cuda.get_device_name(device)} has no bfloat16')


def _check_format(path: Path) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix('.').lower() not in known:
        raise ValueError(
            f'--picture {path}: no picture has the suffix {path.suffix!r}; use one of '
            f'{", ".join(sorted(known))}'
        )


def check_compile(device: str) -> None:
    """Compile something small.

    Raises:
        ValueError: If that fails, mostly because there is no compiler.
    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # torch raises errors of its own, of several kinds
        reason = ' '.join(str(error).partition('\n\n')[0].split())[:200]
        raise ValueError(
            f'torch.compile does not work on {device} here: {reason}. On a CPU it needs a C++ '
            'compiler (g++ or clang++, or its path in the variable CXX); or leave out --compile.'
        ) from error
