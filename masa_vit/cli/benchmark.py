"""The command `masa-vit benchmark`: measure a model against another in every setting."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch

from masa_vit.benchmark import gpu_suite, steps
from masa_vit.benchmark.measurement import Measurement
from masa_vit.benchmark.memory import peak_memory
from masa_vit.benchmark.results import Report, describe_setting, plot_ratios, print_table
from masa_vit.benchmark.sizes import UNITS, count_flops, count_sizes
from masa_vit.benchmark.specs import (
    DEFAULT_MEASURES,
    SHARED_ONLY,
    add_arguments,
    check_arguments,
    make_specs,
)
from masa_vit.benchmark.subjects import TIMM, Kind, Spec, Subject
from masa_vit.benchmark.timing import time_alone, time_pairs
from masa_vit.export import fold
from masa_vit.utils.arguments import require

EXAMPLES = """examples:
  masa-vit benchmark vit_base_masa_s4 --batch-size 1 4 16 64 --dtype fp32 bf16 --json times.json
  masa-vit benchmark vit_base_masa_s4 --measure train memory --batch-size 4 --checkpointing
  masa-vit benchmark vit_base_masa_s4 --measure load fold compress sizes
  masa-vit benchmark vit_tiny_masa_s4 --against vit_tiny_masa_s4 --against-args num_atoms=2
  masa-vit benchmark masa_vit::det/mask_rcnn_vit_masa.py --img-size 512 --batch-size 1"""

__all__ = ['EXAMPLES', 'add_arguments', 'run']

Pair = tuple[Subject, Subject]
Specs = tuple[Spec, Spec]


def run(args: argparse.Namespace) -> int:
    """Measure what the arguments ask for; print tables, write the JSON and the picture.

    Raises:
        ValueError: For arguments that do not go together.
        OSError: For a file that cannot be written.
    """
    require('rich', *(['matplotlib'] if args.picture else []))
    if args.suite:
        return gpu_suite.run(args)
    kind = TIMM
    if args.model.endswith('.py'):
        from masa_vit.detection.benchmark_subject import DETECTOR

        kind = DETECTOR
    check_arguments(args, kind)
    if args.threads:
        torch.set_num_threads(args.threads)
    ours = ('run', 'command', 'traceback')  # of the command line, not of the benchmark
    record = {key: value for key, value in vars(args).items() if key not in ours}
    for key in ('model_args', 'against_args'):
        record[key] = dict(record[key])
    report = Report(record, args.json)

    specs = make_specs(args, args.batch_size[0])
    pair = _build(kind, specs)
    report.models = {
        'model': pair[0].name,
        'against': pair[1].name,
        'img_size': pair[0].img_size,
    }
    measures = _choose_measures(args, pair[0], report)
    for row in _measure_once(args, kind, specs, pair, measures):
        report.add(row)
    _print(report, {})
    del pair  # the settings have models of their own

    for batch_size, dtype in product(args.batch_size, args.dtype):
        setting = {
            'batch_size': batch_size,
            'dtype': dtype,
            'compile': args.compile,
            'checkpointing': args.checkpointing,
        }
        specs = make_specs(args, batch_size)
        for row in _measure_setting(args, kind, specs, dtype, measures, report):
            report.add(replace(row, setting=setting))
        _print(report, setting)
    if args.picture:
        title = f'{pair_name(report)}, {args.device}, {torch.get_num_threads()} threads'
        args.picture.parent.mkdir(parents=True, exist_ok=True)
        plot_ratios(report.measurements, title).savefig(args.picture, dpi=150)
    for what in ('json', 'picture'):
        if getattr(args, what):
            print(f'{what + ":":9}{getattr(args, what)}')
    return 0


def pair_name(report: Report) -> str:
    """Both models, in the order of the ratios."""
    return f'{report.models["model"]} over {report.models["against"]}'


def _build(kind: Kind, specs: Specs) -> Pair:
    torch.manual_seed(0)
    model, against = (kind.build(spec) for spec in specs)
    if model.img_size != against.img_size:
        raise ValueError(
            f'{model.name!r} takes images of {model.img_size} pixels, {against.name!r} of '
            f'{against.img_size}: choose one size, --img-size'
        )
    return model, against


def _choose_measures(args: argparse.Namespace, subject: Subject, report: Report) -> tuple[str, ...]:
    """What was asked for; by default, what there is."""
    if subject.is_shared:
        return tuple(args.measure or DEFAULT_MEASURES)
    impossible = [name for name in args.measure or () if name in SHARED_ONLY]
    if impossible:
        raise ValueError(
            f'--measure {" ".join(impossible)}: nothing is shared in {subject.name!r}, so there is '
            'nothing to fold or to compress to'
        )
    if not args.measure:
        report.note(f'nothing is shared in {subject.name}: no evaluation after fold')
    return tuple(name for name in args.measure or DEFAULT_MEASURES if name not in SHARED_ONLY)


def _measure_once(
    args: argparse.Namespace, kind: Kind, specs: Specs, pair: Pair, measures: tuple[str, ...]
) -> Iterator[Measurement]:
    """What depends on no setting."""
    device = torch.device(args.device)
    subject, against = pair
    if 'sizes' in measures:
        sizes, others = count_sizes(subject), count_sizes(against)
        for what, unit in UNITS.items():
            yield Measurement(what, unit, [sizes[what]], [others[what]])
    if 'load' in measures:
        with steps.loading(subject, device) as ours, steps.loading(against, device) as other:
            yield from time_pairs(ours, other, args.pairs, args.warm_up)
    if 'fold' in measures:
        yield from time_alone(steps.folding(subject, device), args.pairs, args.warm_up)
    if 'compress' in measures:
        dense = kind.build(replace(specs[0], dense=True)).model
        call = steps.compressing(dense, steps.num_atoms_of(subject.model), device)
        yield from time_alone(call, args.pairs, args.warm_up)


def _measure_setting(
    args: argparse.Namespace,
    kind: Kind,
    specs: Specs,
    dtype: str,
    measures: tuple[str, ...],
    report: Report,
) -> Iterator[Measurement]:
    """What depends on batch size and precision; the processes first, while this one is small."""
    device = torch.device(args.device)
    for name, train in (('memory', True), ('eval-memory', False)):
        if name in measures:
            ours, others = (peak_memory(kind.build, s, dtype, args.compile, train) for s in specs)
            what = 'training' if train else 'evaluation'
            yield Measurement(f'peak memory of {what}', 'bytes', [ours[0]], [others[0]])
            yield Measurement(f'- after imports, {what}', 'bytes', [ours[1]], [others[1]])
    if 'sizes' in measures:
        if 'flops' in kind.missing:
            report.note(f'no FLOPs: {kind.missing["flops"]}')
        else:
            subject, against = (kind.build(replace(spec, device='meta')) for spec in specs)
            flops, other_flops = count_flops(subject), count_flops(against)
            for what in flops:
                yield Measurement(what, 'FLOPs', [flops[what]], [other_flops[what]])
    if {'train', 'eval', 'fold-eval'} & set(measures):
        yield from _time_setting(args, _build(kind, specs), device, dtype, measures)


def _time_setting(
    args: argparse.Namespace,
    pair: Pair,
    device: torch.device,
    dtype: str,
    measures: tuple[str, ...],
) -> Iterator[Measurement]:
    torch.compiler.reset()  # what was compiled for other batch sizes would make sizes dynamic
    subject, against = pair
    how = (device, dtype, args.compile)
    if 'train' in measures:
        calls = (steps.training_step(subject, *how), steps.training_step(against, *how))
        yield from time_pairs(*calls, args.pairs, args.warm_up)
        del calls  # with the optimizers' states
    if {'eval', 'fold-eval'} & set(measures):
        other = steps.evaluation(against, against.model, *how)
    if 'eval' in measures:
        ours = steps.evaluation(subject, subject.model, *how)
        yield from time_pairs(ours, other, args.pairs, args.warm_up)
    if 'fold-eval' in measures:
        folded = steps.evaluation(subject, fold(subject.model), *how)
        for row in time_pairs(folded, other, args.pairs, args.warm_up):
            yield replace(row, what='evaluation after fold')


def _print(report: Report, setting: dict) -> None:
    rows = [row for row in report.measurements if row.setting == setting]
    if rows:
        threads = f'{report.arguments["device"]}, {torch.get_num_threads()} threads'
        height, width = report.models['img_size']
        print_table(
            f'{pair_name(report)}\n{describe_setting(setting)}, {height} x {width} px, {threads}',
            rows,
        )
