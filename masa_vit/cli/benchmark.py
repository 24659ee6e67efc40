"""The command `masa-vit benchmark`: measure a model against another in every setting."""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import torch

from masa_vit.benchmark import gpu_suite
from masa_vit.benchmark.pairs import (
    DEFAULT_MEASURES,
    MEASURES,
    SHARED_ONLY,
    Plan,
    build_pair,
    measure_once,
    measure_setting,
)
from masa_vit.benchmark.results import Report, describe_setting, plot_ratios, print_table
from masa_vit.benchmark.steps import DTYPES
from masa_vit.benchmark.subjects import TIMM, Kind, Spec, Subject
from masa_vit.export.folding import MASA_ARGS
from masa_vit.models import dense_architecture
from masa_vit.utils.arguments import parse_pair, positive_int, require
from masa_vit.utils.staging import check_file

EXAMPLES = """examples:
  masa-vit benchmark vit_base_masa_s4 --batch-size 1 4 16 64 --dtype fp32 bf16 --json times.json
  masa-vit benchmark vit_base_masa_s4 --measure train memory --batch-size 4 --checkpointing
  masa-vit benchmark vit_base_masa_s4 --measure load fold compress sizes
  masa-vit benchmark vit_tiny_masa_s4 --against vit_tiny_masa_s4 --against-args num_atoms=2
  masa-vit benchmark masa_vit::det/mask_rcnn_vit_masa.py --img-size 512 --batch-size 1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `masa-vit benchmark`."""
    parser.add_argument(
        'model',
        nargs='?',
        default='',
        help="a timm model, ours or any other; or a detector's config",
    )
    parser.add_argument(
        '--suite',
        choices=('gpu',),
        help='measure ViT-S, ViT-B and ViT-L (or the MASA model MODEL alone) on a GPU, at batch sizes '
        '64 and 256, in bf16, eager and compiled, in about 8 minutes; other options are ignored',
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
    parser.add_argument('--batch-size', nargs='+', type=positive_int, default=[8], metavar='B')
    parser.add_argument(
        '--dtype', nargs='+', choices=DTYPES, default=['fp32'], help='bf16 is autocast'
    )
    parser.add_argument('--compile', action='store_true', help='torch.compile both models')
    parser.add_argument(
        '--checkpointing', action='store_true', help='recompute the blocks in the backward pass'
    )
    parser.add_argument(
        '--img-size', type=positive_int, help='default: of the model, 1024 for detectors'
    )
    parser.add_argument('--pairs', type=positive_int, default=7, help='alternated pairs to time')
    parser.add_argument('--warm-up', type=int, default=1, help='runs of each before that')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=positive_int, help='of torch on the CPU')
    parser.add_argument('--json', '--out', type=Path, help='also write the results to this file')
    parser.add_argument('--picture', type=Path, help='also draw the ratios (.png, .svg, .pdf)')


def run(args: argparse.Namespace) -> int:
    """Run `masa-vit benchmark`.

    Raises:
        ValueError: For arguments that exclude each other.
        OSError: For a file that cannot be written.
    """
    require('rich', 'scipy', *(['matplotlib'] if args.picture else []))
    if args.device.startswith('cuda:') and torch.cuda.is_available():
        torch.cuda.set_device(args.device)  # the timer waits for the current device
    if args.suite:
        return _run_suite(args)
    if not args.model:
        raise ValueError('expected MODEL, or --suite gpu')
    kind = TIMM
    if args.model.endswith('.py'):
        from masa_vit.detection.benchmark_subject import DETECTOR

        kind = DETECTOR
    _check(args, kind)
    if args.threads:
        torch.set_num_threads(args.threads)
    record = {k: v for k, v in vars(args).items() if k not in ('run', 'command', 'traceback')}
    for key in ('model_args', 'against_args'):
        record[key] = dict(record[key])
    report = Report(record, args.json)

    specs = _specs(args, args.batch_size[0])
    pair = build_pair(kind, specs)
    report.models = {'model': pair[0].name, 'against': pair[1].name, 'img_size': pair[0].img_size}
    measures = _choose_measures(args, pair[0], report)
    for row in measure_once(
        Plan(kind, measures, pairs=args.pairs, warm_up=args.warm_up), specs, pair
    ):
        report.add(row)
    _print(report, 0)
    del pair  # the settings build their models
    for batch_size, dtype in product(args.batch_size, args.dtype):
        before = len(report.measurements)
        plan = Plan(kind, measures, dtype, args.compile, args.pairs, args.warm_up)
        measure_setting(plan, _specs(args, batch_size), report)
        _print(report, before)
    if args.picture:
        title = f'{_title(report)}, {args.device}, {torch.get_num_threads()} threads'
        args.picture.parent.mkdir(parents=True, exist_ok=True)
        plot_ratios(report.measurements, title).savefig(args.picture, dpi=150)
    for what in ('json', 'picture'):
        if getattr(args, what):
            print(f'{what + ":":9}{getattr(args, what)}')
    return 0


def _run_suite(args: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        raise ValueError('--suite gpu: no GPU, torch.cuda.is_available() is False')
    if torch.device(args.device).type != 'cuda':
        raise ValueError(f'--suite gpu measures on CUDA, got --device {args.device}')
    models = [args.model] if args.model else gpu_suite.MODELS
    if not all(map(dense_architecture, models)):
        raise ValueError(f'--suite gpu measures models such as {gpu_suite.MODELS[0]}, got {models}')
    if args.json:
        check_file(args.json, force=True)
    report = Report({'suite': args.suite, 'device': args.device}, args.json)
    gpu_suite.run_cases(gpu_suite.make_cases(models, args.device), report)
    gpu_suite.print_results(report)
    if args.json:
        print(f'json: {args.json}')
    return 0


def _specs(args: argparse.Namespace, batch_size: int) -> tuple[Spec, Spec]:
    """Return the model and the other; a dense baseline has the arguments of the model."""
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


def _check(args: argparse.Namespace, kind: Kind) -> None:
    """Refuse, before anything is built, what the kind, the device or the machine lacks."""
    if args.warm_up < 0:
        raise ValueError(f'--warm-up must be >= 0, got {args.warm_up}')
    for name in (*(args.measure or ()), *(('compile',) if args.compile else ())):
        if name in kind.missing:
            raise ValueError(f'{name} is not available here: {kind.missing[name]}')
    if args.against is None and (wrong := MASA_ARGS & set(dict(args.against_args))):
        raise ValueError(
            f'--against-args has {sorted(wrong)}, which the dense baseline does not take: name the '
            f'other model, e.g. --against {args.model}'
        )
    try:
        device = torch.device(args.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f'--device {args.device}: {str(error).splitlines()[0]}') from error
    if device.type == 'meta':
        raise ValueError('--device meta computes nothing')
    if 'bf16' in args.dtype and not torch.amp.is_autocast_available(device.type):
        raise ValueError(f'--dtype bf16: torch has no autocast on {args.device}')
    for spec in _specs(args, args.batch_size[0]):
        kind.check(spec)
    for path in filter(None, (args.json, args.picture)):
        check_file(path, force=True)
    if args.picture:
        from matplotlib.backend_bases import FigureCanvasBase

        known = FigureCanvasBase.get_supported_filetypes()
        if args.picture.suffix.removeprefix('.').lower() not in known:
            raise ValueError(
                f'--picture {args.picture}: expected one of the suffixes {", ".join(sorted(known))}'
            )
    if args.compile:
        _check_compile(args.device)


def _check_compile(device: str) -> None:
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # errors of several kinds, mostly a missing compiler
        reason = ' '.join(str(error).partition('\n\n')[0].split())[:200]
        raise ValueError(
            f'torch.compile does not work on {device} here: {reason}. On a CPU it needs a C++ '
            'compiler (g++ or clang++, or its path in the variable CXX); or leave out --compile.'
        ) from error


def _choose_measures(args: argparse.Namespace, subject: Subject, report: Report) -> list[str]:
    chosen = args.measure or DEFAULT_MEASURES
    if subject.is_shared:
        return [*chosen]
    if impossible := [name for name in args.measure or () if name in SHARED_ONLY]:
        raise ValueError(
            f'--measure {" ".join(impossible)}: nothing is shared in {subject.name!r}, so there is '
            'nothing to fold or to compress to'
        )
    if not args.measure:
        report.note(f'nothing is shared in {subject.name}: no evaluation after fold')
    return [name for name in chosen if name not in SHARED_ONLY]


def _title(report: Report) -> str:
    return f'{report.models["model"]} over {report.models["against"]}'


def _print(report: Report, start: int) -> None:
    """Print the measurements from `start` on, which have one setting."""
    if rows := report.measurements[start:]:
        where = f'{report.arguments["device"]}, {torch.get_num_threads()} threads'
        height, width = report.models['img_size']
        setting = describe_setting(rows[0].setting)
        print_table(f'{_title(report)}\n{setting}, {height} x {width} px, {where}', rows)
