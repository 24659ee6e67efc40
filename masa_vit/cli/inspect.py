"""`masa-vit inspect`: show the sharing of models in tables, pictures and a page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from masa_vit.inspection import (
    AtomRecord,
    compare,
    history_quantities,
    read_history,
    summarize,
)
from masa_vit.inspection.chart_contents import STEMS
from masa_vit.inspection.image_analysis import ABLATED, add_image_quantities
from masa_vit.inspection.inspected import LAST_CHECKPOINT, Run, load, unique_names
from masa_vit.inspection.page import write_page
from masa_vit.inspection.plots import draw_history, report_pictures, write_animation
from masa_vit.inspection.report import Comparison, History, Report
from masa_vit.inspection.tables import print_report, write_csv
from masa_vit.utils.arguments import positive_int, require
from masa_vit.utils.images import find_images
from masa_vit.utils.staging import check_free, check_writable, staged

EXAMPLES = """examples:
  masa-vit inspect vit_base_masa_s4 --out atoms/
  masa-vit inspect work_dirs/a --out atoms/ --images photos/
  masa-vit inspect work_dirs/a --out atoms/ --run work_dirs/a --format html,png,pdf
  masa-vit inspect compressed/ work_dirs/tuned --out beside/
  masa-vit inspect a.pth b.pth --against c.safetensors --out beside/ --format table"""

FORMATS = ('table', 'csv', 'json', 'png', 'pdf', 'svg', 'html')
PICTURES = ('png', 'pdf', 'svg')

_DEFAULT = 'table,csv,json,png,html'
_DENSE = (
    'Nothing is shared in this model: it is dense, and has no atoms. The report covers its weights.'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `masa-vit inspect`."""
    parser.add_argument(
        'sources',
        nargs='*',
        metavar='MODEL_OR_CHECKPOINT',
        help="a timm model's name (shows its init), a folder with config.json, a checkpoint, or a "
        'work dir (its last checkpoint); several are compared with the first',
    )
    parser.add_argument('--out', required=True, type=Path, help='folder for the report')
    parser.add_argument('--force', action='store_true', help='replace files that exist')
    parser.add_argument('--against', metavar='OTHER', help='compare each source with this one')
    parser.add_argument(
        '--run',
        dest='work_dir',  # `run` is what the command line calls
        metavar='WORK_DIR',
        help='show how the sharing changed while this run trained',
    )
    parser.add_argument(
        '--format',
        type=_formats,
        default=_DEFAULT,
        metavar='F,F',
        help=f'out of {",".join(FORMATS)} (default: {_DEFAULT})',
    )
    parser.add_argument('--config', help='of the run that wrote the checkpoints')
    images = parser.add_argument_group('images', 'attention, CKA and ablation on images')
    images.add_argument('--images', metavar='FOLDER', help='of any structure')
    images.add_argument(
        '--num-images', type=positive_int, default=128, metavar='N', help='at random (default: 128)'
    )
    images.add_argument(
        '--num-ablated',
        type=int,
        default=ABLATED,
        metavar='N',
        help=f'of them for the removal of atoms, which is slow; 0: none (default: {ABLATED})',
    )
    images.add_argument('--batch-size', type=positive_int, default=32, metavar='B')


def run(args: argparse.Namespace) -> int:
    """Run `masa-vit inspect`."""
    page = ['plotly', 'jinja2'] if 'html' in args.format else []
    require('rich', 'matplotlib', 'scipy', *page, extra='inspect')
    if args.num_ablated < 0:
        raise ValueError(f'--num-ablated={args.num_ablated}: expected 0 or more')
    # errors before the work
    pictures = [kind for kind in args.format if kind in PICTURES]
    names = [f'{stem}{n}.{kind}' for stem in STEMS for n in ('', '_1') for kind in pictures]
    names += [f'report.{kind}' for kind in args.format if kind not in ('table', *PICTURES)]
    check_free(args.out, [*names, *(['history.gif'] if pictures else [])], args.force)
    check_writable(args.out)
    if args.images:
        find_images([args.images])
    texts = _texts(args)
    records = read_history(args.work_dir) if args.work_dir else []
    report = _inspect(args, texts)
    if records:
        _add_history(report, Path(args.work_dir).resolve().name, records)
    if 'table' in args.format:
        print_report(report)
    writers = _writers(report, args)
    with staged(args.out, [*writers], args.force) as stage:
        for name, write in writers.items():
            write(stage / name)
    for name in writers:
        print(args.out / name)
    return 0


def _load_run(config: str, checkpoint: str) -> Run:
    from masa_vit.training.prediction import load_run  # mmengine: for configs alone

    return load_run(config, checkpoint)


def _add_history(report: Report, name: str, records: Sequence[AtomRecord]) -> None:
    epochs = [record.epoch for record in records]
    if len(records) > 1:
        report.history = History(name, epochs, history_quantities(records))
        return
    why = f'{name} has a record of one moment only (epoch {epochs[0]}): no history to show.'
    if not report.models:
        raise ValueError(why)
    for model in report.models:
        report.notes[model] = f'{report.notes.get(model, "")} {why}'.strip()


def _texts(args: argparse.Namespace) -> list[str]:
    """Return the sources to load; raise ValueError if the arguments do not fit together."""
    texts = list(args.sources)
    if not texts and args.work_dir and (Path(args.work_dir) / LAST_CHECKPOINT).is_file():
        texts = [args.work_dir]  # else its history alone
    if args.against and not texts:
        raise ValueError(
            f'nothing to compare with --against {args.against}: give a model or a checkpoint, too'
        )
    if not texts and not args.work_dir:
        raise ValueError('nothing to inspect: give a model, a checkpoint, or --run WORK_DIR')
    if args.images and not texts:
        raise ValueError(f'--images needs a model, and {args.work_dir!r} has no checkpoint')
    return [*texts, args.against] if args.against else texts


def _inspect(args: argparse.Namespace, texts: Sequence[str]) -> Report:
    sources = unique_names([load(text, args.config, _load_run) for text in texts])
    report = Report()
    for source in sources:
        try:
            summary = report.models[source.name] = summarize(source.weights)
        except ValueError as error:
            raise ValueError(f'{source.name}: {error}') from error
        notes = [] if source.weights.shares else [_DENSE]
        if args.images:
            options = (args.images, args.num_images, args.num_ablated, args.batch_size)
            report.pictures[source.name], note = add_image_quantities(source, summary, *options)
            notes.append(note)
        if notes:
            report.notes[source.name] = ' '.join(notes)
    against = [(source, sources[-1]) for source in sources[:-1]]
    pairs = against if args.against else [(sources[0], other) for other in sources[1:]]
    report.comparisons = [
        Comparison(first.name, other.name, compare(first.weights, other.weights))
        for first, other in pairs
    ]
    return report


def _writers(report: Report, args: argparse.Namespace) -> dict[str, Callable[[Path], Any]]:
    """File name -> what writes it."""
    writers: dict[str, Callable[[Path], Any]] = {}
    if 'csv' in args.format:
        writers['report.csv'] = partial(write_csv, report)
    if 'json' in args.format:
        document = report.to_dict()
        writers['report.json'] = lambda path: path.write_text(
            json.dumps(document, allow_nan=False, indent=1), encoding='utf-8'
        )
    pictures = [kind for kind in args.format if kind in PICTURES]
    figures = dict(report_pictures(report)) if pictures else {}
    if pictures and report.history is not None:
        name, epochs, projections = report.history
        figures['history'] = draw_history(projections, epochs)
        figures['history'].suptitle(name, parse_math=False)
        writers['history.gif'] = partial(write_animation, projections, epochs)
    for stem, figure in figures.items():
        for kind in pictures:
            writers[f'{stem}.{kind}'] = partial(_save, figure)
    if 'html' in args.format:
        title = ', '.join(report.models) or Path(args.work_dir).resolve().name
        writers['report.html'] = partial(write_page, report, title=title)
    return writers


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150)
    figure.set_layout_engine('none')  # found once for all formats: it takes half of the time


def _formats(text: str) -> list[str]:
    formats = [part.strip() for part in text.split(',')]
    if unknown := [part for part in formats if part not in FORMATS]:
        raise argparse.ArgumentTypeError(
            f'unknown format {", ".join(map(repr, unknown))}: expected some of {",".join(FORMATS)}'
        )
    return formats
