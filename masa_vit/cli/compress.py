"""`masa-vit compress`: a dense model as a MASA model in a folder, with a report."""

from __future__ import annotations

import argparse
import ast
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from masa_vit.compression import error_report as reporting
from masa_vit.compression.building import without_residual
from masa_vit.compression.image_data import Accuracy, Data, folder_data, top1_accuracy
from masa_vit.compression.metric import collect_statistics
from masa_vit.compression.options import CompressionOptions
from masa_vit.compression.pipeline import compress_with_record
from masa_vit.export.hub_folder import FILES, export_hub
from masa_vit.models.sources import add_source_arguments, load_named
from masa_vit.utils.arguments import positive_int, require
from masa_vit.utils.staging import check_free, check_writable, staged

EXAMPLES = """examples:
  masa-vit compress vit_base_patch16_224 --pretrained --out compressed/
  masa-vit compress my_config.py --checkpoint work_dirs/a/epoch_15.pth --out compressed/ \\
      --num-atoms auto --budget 0.33 --residual-rank energy --weighting fisher
  masa-vit compress vit_base_patch16_224 --pretrained --calibration train/ --val val/ --out c/ \\
      --groups kl --num-groups 3 --align rotation"""

REPORT, PICTURE = 'report.json', 'report.png'

_logger = logging.getLogger('masa_vit.compression')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `masa-vit compress`."""
    add_source_arguments(parser)
    parser.add_argument(
        '--out',
        type=Path,
        help="folder for the model (timm's layout) and the report",
    )
    parser.add_argument('--force', action='store_true', help='replace files that exist')
    how = parser.add_argument_group('how', 'the defaults are plain Matrix PCA')
    for option in fields(CompressionOptions):
        how.add_argument(
            f'--{option.name.replace("_", "-")}',
            type=_PARSERS.get(option.name, str),
            default=option.default,
            **option.metadata,
        )
    data = parser.add_argument_group(
        'images', 'from the config of a training run, else from folders'
    )
    data.add_argument('--calibration', metavar='FOLDER', help='images, from the training set')
    data.add_argument(
        '--num-images',
        type=positive_int,
        default=1024,
        metavar='N',
        help='for calibration (default: 1024)',
    )
    data.add_argument('--val', metavar='FOLDER', help='folders of classes, for top-1')
    data.add_argument(
        '--num-val',
        type=positive_int,
        metavar='N',
        help='of the validation images, drawn with a fixed seed (default: all)',
    )
    data.add_argument('--batch-size', type=positive_int, default=64, metavar='B')
    parser.add_argument('--device', default='cpu', help='to compute on, e.g. cuda (default: cpu)')
    data.add_argument('--no-control', action='store_true', help='leave out the Gaussian matrices')
    tuned = parser.add_argument_group(
        'fine-tuning', 'SOURCE is a folder that this command wrote; nothing is compressed'
    )
    tuned.add_argument(
        '--tuned',
        type=Path,
        metavar='WORK_DIR',
        help='add the accuracies of a training that started from SOURCE to its report',
    )
    tuned.add_argument(
        '--epochs', type=int, nargs='+', default=[1, 3, 10], help='which (default: 1 3 10)'
    )


def run(args: argparse.Namespace) -> int:
    """Run `masa-vit compress`."""
    require('rich', 'matplotlib', 'scipy')
    load_classifier, load_data = None, folder_data
    if args.source.endswith('.py'):
        from masa_vit.training import calibration, model_building

        load_classifier, load_data = model_building.load_classifier, calibration.config_data
    if args.tuned is not None:
        return _add_tuned(Path(args.source), args.tuned, args.epochs)
    if args.out is None:
        raise ValueError('--out FOLDER is needed: where the model and the report go')
    check_free(args.out, [*FILES, REPORT, PICTURE], args.force)
    check_writable(args.out)
    options = CompressionOptions(
        **{f.name: getattr(args, f.name) for f in fields(CompressionOptions)}
    )
    model = load_named(args, load_classifier).eval().to(args.device)
    data = load_data(args, model)
    with _progress():
        report = _compress(args, model, options, data)
    _print(report, args.out)
    return 0


def _compress(
    args: argparse.Namespace, model: nn.Module, options: CompressionOptions, data: Data
) -> reporting.Report:
    """Compress a model, measure the result, and write both."""
    compression = compress_with_record(model, options, data.calibration)
    top1 = {}
    if data.validation is not None:
        measured: dict[str, nn.Module] = {'before': model, 'after': compression.model}
        if any(map(any, compression.solution.sharing.ranks.values())):
            measured['without residual'] = without_residual(compression.model)
        for name, candidate in measured.items():
            _logger.info('measuring top-1: %s', name)
            top1[name] = top1_accuracy(candidate, data.validation())
    statistics = compression.statistics
    if statistics is None and data.calibration:
        _logger.info('running the calibration images, for the errors of the outputs')
        statistics = collect_statistics(compression.dense, data.calibration)
    report = reporting.make_report(compression, top1, not args.no_control, statistics)
    _logger.info('writing and checking the model')
    export_hub(compression.model, args.out, force=args.force)
    _write_report(report, args.out, args.force)
    return report


@contextmanager
def _progress() -> Iterator[None]:
    """Print the log messages of the package to stderr, with a spinner on a terminal."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    handler = logging.Handler()
    handler.emit = lambda record: console.print(record.getMessage())  # type: ignore[method-assign]
    level, propagate = _logger.level, _logger.propagate
    _logger.addHandler(handler)
    _logger.setLevel(logging.INFO)
    _logger.propagate = False  # a handler of the root logger would repeat every line
    try:
        with console.status('compressing'):
            yield
    finally:
        _logger.removeHandler(handler)
        _logger.setLevel(level)
        _logger.propagate = propagate


def _add_tuned(folder: Path, work_dir: Path, epochs: list[int]) -> int:
    """Add the accuracies of a fine-tuning to a report."""
    paths = folder / REPORT, work_dir / 'summary.json'
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f'{str(path)!r} does not exist: SOURCE is to be a folder that masa-vit compress wrote, '
                '--tuned the work dir of a training that started from it'
            )
    report, summary = (json.loads(path.read_text(encoding='utf-8')) for path in paths)
    try:
        used = summary['config']['model'].get('init_from')
        measured = {
            record['epoch']: Accuracy(
                metrics['accuracy/top1'], int(metrics['accuracy/num_samples'])
            )
            for record in summary['history']
            if 'accuracy/top1' in (metrics := record.get('metrics', {}))
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{str(paths[1])!r} is not one that masa-vit train wrote ({type(error).__name__}: {error})'
        ) from error
    if not used or Path(used).resolve() not in (p.resolve() for p in (folder, folder / FILES[0])):
        raise ValueError(
            f'the training in {str(work_dir)!r} started from {used!r}, not from {str(folder)!r}'
        )
    missing = [epoch for epoch in epochs if epoch not in measured]
    what = f'no accuracy/top1 of {_name_epochs(missing)}'
    if len(missing) == len(epochs):
        others = ', '.join(map(str, measured))
        rest = f'but of {others}: choose with --epochs' if measured else 'nor of any other'
        raise ValueError(f'{str(paths[1])!r} has {what}, {rest}')
    if missing:
        print(f'{what}: left out', file=sys.stderr)
    for epoch in epochs:
        if epoch in measured:
            reporting.add_top1(report, f'epoch {epoch}', measured[epoch])
    _write_report(report, folder, force=True)
    _print(report, folder)
    return 0


def _name_epochs(epochs: list[int]) -> str:
    return f'epoch{"s" if len(epochs) > 1 else ""} {", ".join(map(str, epochs))}'


def _write_report(report: reporting.Report, folder: Path, force: bool) -> None:
    with staged(folder, [REPORT, PICTURE], force) as stage:
        (stage / REPORT).write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
        reporting.draw(report).savefig(stage / PICTURE, dpi=150)


def _print(report: reporting.Report, out: Path) -> None:
    from rich.console import Console

    console = Console()
    console.print(reporting.make_table(report))
    for line in reporting.describe(report):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(
        f"\nmodel:   timm.create_model('local-dir:{out}', pretrained=True)\nreport:  {out / REPORT}\n"
        f'picture: {out / PICTURE}',
        highlight=False,
        soft_wrap=True,
    )


def _literal(text: str) -> Any:
    """Parse a number or lists; other text is the name of a method."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


_PARSERS: dict[str, Callable[[str], Any]] = {
    'num_atoms': _literal,
    'groups': _literal,
    'num_groups': int,
    'residual_rank': _literal,
    'budget': float,
    'sweeps': int,
}
